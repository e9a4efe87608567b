"""Policy, critic, reward model and reference: plain classes, usable in a REPL, wrapped as Ray actors elsewhere."""

"""Policy, critic, reward model and reference: plain classes that work in a REPL; Ray actors wrap them elsewhere."""

"""The maths: torch tensors in, small named results out. No ray, no I/O, no config.

Losses return sums (`LossSum`), never means; the learner divides by the element count of the whole optimizer step.
Import from the module that holds the function: nothing is re-exported, so that `kl_controller`, which the driver
uses, does not bring torch along.
"""

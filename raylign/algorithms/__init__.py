"""The maths of alignment: torch tensors in, small named results out. No ray, no I/O, no config.

Losses return sums (`LossSum`), never means; the learner divides by the element count of the whole optimizer step.
Import from the module that defines the function: nothing is re-exported here, so that the driver can import
`kl_controller` without importing torch.
"""

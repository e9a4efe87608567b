"""Conversion of data rows to token ids: sources, formats, chat templates, length limits, batches, resumable order."""

from raylign.data.batching import micro_batches
from raylign.data.labelled import load_labelled
from raylign.data.loaders import load_pairs, load_prompts, load_sequences
from raylign.data.sampler import Sampler
from raylign.data.sources import Rows, read_rows

__all__ = [
    "Rows",
    "Sampler",
    "load_labelled",
    "load_pairs",
    "load_prompts",
    "load_sequences",
    "micro_batches",
    "read_rows",
]

"""DPO with TRL 1.16's DPOTrainer and the options that are fastest here.

Variants: `online` computes the reference in the loop (TRL's default), `precomputed` before the loop, with batches four
times as large as in training. TRL itself disables `padding_free` in this version.
"""
# pyright: reportMissingImports=false
# TRL has its own environment (environment.py).

from __future__ import annotations

import os
import tempfile

from record import Record

record = Record.from_arguments("online", "precomputed")
scratch = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = (
    scratch.name
)  # TRL caches reference logprobs on disk; no round may benefit from an earlier one

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import DPOConfig, DPOTrainer  # noqa: E402

record.imported()


class TimedTrainer(DPOTrainer):
    """DPOTrainer that times its reference pass, which runs inside the constructor."""

    def _precompute_ref_logps(self, *args, **kwargs):
        with record.phase("reference"):
            return super()._precompute_ref_logps(*args, **kwargs)


class Losses(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss" in logs:
            record.losses.append({"loss": float(logs["loss"]), "accuracy": float(logs["rewards/accuracies"])})


def main() -> None:
    dpo, adam = record.settings["dpo"], record.settings["optimizer"]
    precomputed = record.variant == "precomputed"
    rows = record.rows("pairs.jsonl")
    with record.phase("load"):
        tokenizer = AutoTokenizer.from_pretrained(record.work / "tokenizer")
        policy = AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=torch.float32)
        reference = (
            None if precomputed else AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=torch.float32)
        )
    config = DPOConfig(
        output_dir=scratch.name,
        per_device_train_batch_size=dpo["batch_size"],
        num_train_epochs=1,
        beta=dpo["beta"],
        learning_rate=dpo["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=adam["betas"][0],
        adam_beta2=adam["betas"][1],
        adam_epsilon=adam["eps"],
        weight_decay=adam["weight_decay"],
        max_grad_norm=adam["max_grad_norm"],
        max_length=512,
        precompute_ref_log_probs=precomputed,
        precompute_ref_batch_size=4 * dpo["batch_size"] if precomputed else None,
        train_sampling_strategy="sequential",  # same order as the other sides, so that losses can be compared
        gradient_checkpointing=False,
        bf16=record.dtype == "bf16",
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=record.settings["seed"],
    )
    with record.phase("construct"):
        trainer = TimedTrainer(
            model=policy,
            ref_model=reference,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Losses()],
        )
    with record.phase("train"):
        trainer.train()
    with record.phase("save"):
        trainer.save_model(scratch.name)
    record.write(items=len(rows), inner=("reference", "train") if precomputed else ("train",))
    scratch.cleanup()


main()

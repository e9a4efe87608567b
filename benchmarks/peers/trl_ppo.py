"""PPO with TRL 1.12's PPOTrainer (trl.experimental.ppo), the last version that has one, and its fastest options.

One micro-batch per minibatch and one generation batch per round. In bf16 the frozen models are loaded in bf16, because
TRL's autocast covers only the update; policy and critic keep fp32 master weights, and generation runs in fp32. The
trainer does not clip gradients and shuffles its prompts; it has no option for either.
"""
# pyright: reportMissingImports=false
# TRL has its own environment (environment.py).

from __future__ import annotations

import os
import tempfile

from record import Record

record = Record.from_arguments()
scratch = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = scratch.name

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # noqa: E402

record.imported()

NAMES = {
    "loss/policy_avg": "loss",
    "loss/value_avg": "value_loss",
    "objective/kl": "kl",
    "objective/scores": "score",
    "objective/entropy": "entropy",
}
untimed_generation = ppo_trainer.batch_generation


def timed_generation(*args, **kwargs):
    with record.phase("generate"):
        return untimed_generation(*args, **kwargs)


class Losses(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs and "loss/policy_avg" in logs:
            record.losses.append({ours: float(logs[theirs]) for theirs, ours in NAMES.items()})


def main() -> None:
    ppo, adam = record.settings["ppo"], record.settings["optimizer"]
    frozen_dtype = torch.bfloat16 if record.dtype == "bf16" else torch.float32
    torch.manual_seed(record.settings["seed"])
    with record.phase("load"):
        tokenizer = AutoTokenizer.from_pretrained(record.work / "tokenizer")
        policy = AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=torch.float32)
        reference = AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=frozen_dtype)
        reward_model = AutoModelForSequenceClassification.from_pretrained(record.work / "reward", dtype=frozen_dtype)
        critic = AutoModelForSequenceClassification.from_pretrained(
            record.work / "policy", num_labels=1, dtype=torch.float32
        )
        torch.nn.init.zeros_(critic.score.weight)
    with record.phase("tokenise"):
        rows = [{"input_ids": tokenizer(row["prompt"])["input_ids"]} for row in record.rows("prompts.jsonl")]
    config = PPOConfig(
        output_dir=scratch.name,
        total_episodes=len(rows),
        per_device_train_batch_size=ppo["prompts_per_step"],
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=ppo["prompts_per_step"],
        num_ppo_epochs=1,
        num_mini_batches=ppo["minibatches"],
        num_sample_generations=0,
        response_length=ppo["completion_tokens"],
        stop_token="eos",
        temperature=1.0,
        kl_coef=ppo["kl_coef"],
        cliprange=ppo["clip_range"],
        cliprange_value=ppo["value_clip_range"],
        vf_coef=1.0,
        gamma=ppo["gamma"],
        lam=ppo["gae_lambda"],
        learning_rate=ppo["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta1=adam["betas"][0],
        adam_beta2=adam["betas"][1],
        adam_epsilon=adam["eps"],
        weight_decay=adam["weight_decay"],
        gradient_checkpointing=False,
        bf16=record.dtype == "bf16",
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=record.settings["seed"],
    )
    ppo_trainer.batch_generation = timed_generation
    with record.phase("construct"):
        trainer = PPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward_model,
            value_model=critic,
            train_dataset=Dataset.from_list(rows),
            callbacks=[Losses()],
        )
    with record.phase("train"):
        trainer.train()
    with record.phase("save"):
        policy.save_pretrained(scratch.name)
    record.write(items=len(rows), inner=("train",))
    scratch.cleanup()


main()

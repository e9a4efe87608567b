"""PPO as an engineer would write it by hand: one process, one loop (Schulman et al. 2017; Ouyang et al. 2022).

Generation keeps a key-value cache and the sampled logprobs; every head runs only on completion tokens. Policy and
critic are two models with an AdamW each. Rows are padded and not sorted.
"""

from __future__ import annotations

from record import Record

record = Record.from_arguments()

import copy  # noqa: E402
import tempfile  # noqa: E402
from typing import NamedTuple  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DynamicCache,
)

record.imported()


class Samples(NamedTuple):
    tokens: torch.Tensor  # [N, P + T]
    attention_mask: torch.Tensor  # [N, P + T]
    mask: torch.Tensor  # [N, T], True on completion tokens, eos included
    logprobs: torch.Tensor  # [N, T], as sampled; 0 outside the mask


class Targets(NamedTuple):
    advantages: torch.Tensor  # [N, T]
    returns: torch.Tensor  # [N, T]
    values: torch.Tensor  # [N, T]
    metrics: dict[str, float]


def generate(policy, prompts: torch.Tensor, num_tokens: int, eos: int, pad: int) -> Samples:
    cache, step_input = DynamicCache(config=policy.config), prompts
    alive = torch.ones(len(prompts), 1, dtype=torch.bool)
    completions, masks, logprobs = [], [], []
    for _ in range(num_tokens):
        hidden = policy.model(input_ids=step_input, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        distribution = policy.lm_head(hidden).float().log_softmax(-1)
        drawn = torch.multinomial(distribution.exp(), 1)
        logprobs.append(distribution.gather(1, drawn) * alive)
        masks.append(alive)
        step_input = torch.where(alive, drawn, pad)
        completions.append(step_input)
        alive = alive & (drawn != eos)
    mask = torch.cat(masks, 1)
    attention_mask = torch.cat([torch.ones_like(prompts), mask.long()], 1)
    return Samples(torch.cat([prompts, *completions], 1), attention_mask, mask, torch.cat(logprobs, 1))


def hidden_states(backbone, samples: Samples) -> torch.Tensor:
    return backbone(input_ids=samples.tokens, attention_mask=samples.attention_mask, use_cache=False).last_hidden_state


def completion_logprobs(policy, samples: Samples) -> torch.Tensor:
    """Return the logprobs of the completion tokens: [N, T]; 0 outside the mask."""
    width = samples.mask.shape[1]
    hidden = hidden_states(policy.model, samples)[:, -width - 1 : -1]
    logits = policy.lm_head(hidden[samples.mask]).float()
    picked = -F.cross_entropy(logits, samples.tokens[:, -width:][samples.mask], reduction="none")
    return torch.zeros(samples.mask.shape).masked_scatter(samples.mask, picked)


def completion_values(critic, samples: Samples) -> torch.Tensor:
    """Return the values of the states in which the completion tokens are chosen: [N, T]; 0 outside the mask."""
    width = samples.mask.shape[1]
    values = critic.score(hidden_states(critic.model, samples)[:, -width - 1 : -1]).squeeze(-1).float()
    return values * samples.mask


def assemble(samples: Samples, ref_logprobs, values, scores, ppo: dict) -> Targets:
    """Compute KL-shaped rewards and whitened advantages (GAE, Schulman et al. 2016)."""
    mask, lengths = samples.mask, samples.mask.sum(1)
    kl = (samples.logprobs - ref_logprobs) * mask
    rewards = -ppo["kl_coef"] * kl
    rewards[torch.arange(len(rewards)), lengths - 1] += scores
    advantages, running, next_value = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + ppo["gamma"] * next_value - values[:, t]
        running = (delta + ppo["gamma"] * ppo["gae_lambda"] * running) * mask[:, t]
        advantages[:, t], next_value = running, values[:, t]
    returns = advantages + values
    chosen = advantages[mask]
    whitened = (advantages - chosen.mean()) * torch.rsqrt(chosen.var() + 1e-8) * mask
    metrics = {
        "kl": kl.sum(1).mean().item(),
        "score": scores.mean().item(),
        "entropy": -samples.logprobs.sum(1).mean().item(),
    }
    return Targets(whitened, returns, values, metrics)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum() / mask.sum()


def losses(policy, critic, samples: Samples, targets: Targets, ppo: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the clipped policy loss (Schulman et al. 2017, eq. 7) and the clipped value loss of one minibatch."""
    ratio = (completion_logprobs(policy, samples) - samples.logprobs).exp()
    clipped = ratio.clamp(1 - ppo["clip_range"], 1 + ppo["clip_range"])
    policy_loss = masked_mean(torch.max(-targets.advantages * ratio, -targets.advantages * clipped), samples.mask)
    values = completion_values(critic, samples)
    near = targets.values + (values - targets.values).clamp(-ppo["value_clip_range"], ppo["value_clip_range"])
    worst = torch.max((values - targets.returns) ** 2, (near - targets.returns) ** 2)
    return policy_loss, 0.5 * masked_mean(worst, samples.mask)


def main() -> None:
    ppo, adam = record.settings["ppo"], record.settings["optimizer"]
    torch.manual_seed(record.settings["seed"])
    with record.phase("load"):
        tokenizer = AutoTokenizer.from_pretrained(record.work / "tokenizer")
        policy = AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=torch.float32)
        reference = copy.deepcopy(policy).requires_grad_(False)
        reward_model = AutoModelForSequenceClassification.from_pretrained(record.work / "reward", dtype=torch.float32)
        critic = AutoModelForSequenceClassification.from_pretrained(
            record.work / "policy", num_labels=1, dtype=torch.float32
        )
        torch.nn.init.zeros_(critic.score.weight)
        optimizers = [
            torch.optim.AdamW(
                model.parameters(),
                lr=ppo["learning_rate"],
                betas=tuple(adam["betas"]),
                eps=adam["eps"],
                weight_decay=adam["weight_decay"],
            )
            for model in (policy, critic)
        ]
    with record.phase("tokenise"):
        prompts = torch.tensor([tokenizer(row["prompt"])["input_ids"] for row in record.rows("prompts.jsonl")])

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=record.dtype == "bf16")
    with record.phase("train"):
        for round_prompts in prompts.split(ppo["prompts_per_step"]):
            with autocast, torch.no_grad():
                with record.phase("generate"):
                    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
                    samples = generate(policy, round_prompts, ppo["completion_tokens"], eos, pad)
                with record.phase("score"):
                    ref_logprobs = completion_logprobs(reference, samples)
                    values = completion_values(critic, samples)
                    last = samples.attention_mask.sum(1) - 1
                    final = hidden_states(reward_model.model, samples)[torch.arange(len(last)), last]
                    scores = reward_model.score(final).squeeze(-1).float()
            targets = assemble(samples, ref_logprobs, values, scores, ppo)
            seen = []
            with record.phase("update"):
                for rows in torch.randperm(len(round_prompts)).chunk(ppo["minibatches"]):
                    part = Samples(*(x[rows] for x in samples))
                    goal = Targets(*(x[rows] for x in targets[:3]), metrics={})
                    with autocast:
                        policy_loss, value_loss = losses(policy, critic, part, goal, ppo)
                    (policy_loss + value_loss).backward()
                    for model, optimizer in zip((policy, critic), optimizers, strict=True):
                        torch.nn.utils.clip_grad_norm_(model.parameters(), adam["max_grad_norm"])
                        optimizer.step()
                        optimizer.zero_grad()
                    seen.append((policy_loss.item(), value_loss.item()))
            policy_mean, value_mean = (sum(column) / len(seen) for column in zip(*seen, strict=True))
            record.losses.append({"loss": policy_mean, "value_loss": value_mean, **targets.metrics})
    with record.phase("save"), tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
    record.write(items=len(prompts), inner=("train",))


main()

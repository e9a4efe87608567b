"""DPO as an engineer would write it by hand: one process, one loop (Rafailov et al. 2023, eq. 7).

The head runs only on completion tokens and the reference is computed in the loop. Rows are padded and not sorted.
"""

from __future__ import annotations

from record import Record

record = Record.from_arguments()

import copy  # noqa: E402
import tempfile  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

record.imported()


def collate(rows: list[dict[str, list[int]]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens [2B, L] (chosen above rejected), attention_mask [2B, L], completion_mask [2B, L - 1] of targets."""
    pairs = [(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
    width = max(len(prompt) + len(completion) for prompt, completion in pairs)
    tokens = torch.zeros(len(pairs), width, dtype=torch.long)
    attention_mask = torch.zeros_like(tokens)
    completion_mask = torch.zeros(len(pairs), width, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(pairs):
        length = len(prompt) + len(completion)
        tokens[i, :length] = torch.tensor(prompt + completion)
        attention_mask[i, :length] = 1
        completion_mask[i, len(prompt) : length] = True
    return tokens, attention_mask, completion_mask[:, 1:]


def sequence_logprobs(model, tokens, attention_mask, completion_mask) -> torch.Tensor:
    """Return the sum of each completion's logprobs: [2B], in nats."""
    hidden = model.model(input_ids=tokens, attention_mask=attention_mask, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[completion_mask]).float()
    token_logprobs = -F.cross_entropy(logits, tokens[:, 1:][completion_mask], reduction="none")
    per_token = torch.zeros(completion_mask.shape).masked_scatter(completion_mask, token_logprobs)
    return per_token.sum(1)


def main() -> None:
    dpo, adam = record.settings["dpo"], record.settings["optimizer"]
    with record.phase("load"):
        tokenizer = AutoTokenizer.from_pretrained(record.work / "tokenizer")
        policy = AutoModelForCausalLM.from_pretrained(record.work / "policy", dtype=torch.float32)
        reference = copy.deepcopy(policy).requires_grad_(False)
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=dpo["learning_rate"],
            betas=tuple(adam["betas"]),
            eps=adam["eps"],
            weight_decay=adam["weight_decay"],
        )
    with record.phase("tokenise"):
        pairs = [
            {
                name: tokenizer(text)["input_ids"] + ([] if name == "prompt" else [tokenizer.eos_token_id])
                for name, text in row.items()
            }
            for row in record.rows("pairs.jsonl")
        ]

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=record.dtype == "bf16")
    with record.phase("train"):
        for begin in range(0, len(pairs), dpo["batch_size"]):
            batch = collate(pairs[begin : begin + dpo["batch_size"]])
            with record.phase("reference"), autocast, torch.no_grad():
                reference_chosen, reference_rejected = sequence_logprobs(reference, *batch).chunk(2)
            with record.phase("update"):
                with autocast:
                    chosen, rejected = sequence_logprobs(policy, *batch).chunk(2)
                margin = dpo["beta"] * ((chosen - reference_chosen) - (rejected - reference_rejected))
                loss = -F.logsigmoid(margin).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), adam["max_grad_norm"])
                optimizer.step()
                optimizer.zero_grad()
            record.losses.append({"loss": loss.item(), "accuracy": (margin > 0).float().mean().item()})
    with record.phase("save"), tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
    record.write(items=len(pairs), inner=("train",))


main()

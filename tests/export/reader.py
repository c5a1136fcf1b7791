"""Another program that opens exported folders with transformers alone, for test_export: run with a folder of its own, never by a person.

argv: a file of what to read, by folder, and a file for what was seen. This repository can't be imported here.
"""

import contextlib
import importlib.util
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

assert importlib.util.find_spec("lm") is None and importlib.util.find_spec("data_sources") is None
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
Seen = dict[str, Any]


def refusal(work: Any) -> str:
    try:
        work()
    except ValueError as error:
        return str(error)
    return ""


def scores(model: Any, told: Seen) -> Seen:
    """Logits of the whole, in pieces, of the last token alone, padded at both sides; and the loss."""
    tokens, padded, mask = told["tokens"], told["padded"], told["mask"]
    cache, pieces, left = None, [], []
    for piece in tokens.split(told["cuts"], 1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    assert cache.get_seq_length() == tokens.shape[1]
    read, cache = 0, None
    for piece in padded.split(told["cuts"], 1):
        read += piece.shape[1]
        out = model(piece, attention_mask=mask[:, :read], past_key_values=cache)
        cache = out.past_key_values
        left.append(out.logits)
    model.train()
    loss = model(tokens, labels=told["labels"]).loss
    loss.backward()
    gradient = model.get_input_embeddings().weight.grad.clone()
    part = model(tokens, labels=told["labels"], num_items_in_batch=99).loss.detach()
    model.zero_grad()
    model.eval()
    return {
        "whole": model(tokens).logits,
        "pieces": torch.cat(pieces, 1),
        "last": model(tokens, logits_to_keep=1, return_dict=False)[0],
        "padded": model(padded, attention_mask=mask).logits,
        "padded pieces": torch.cat(left, 1),
        "padded right": model(padded.flip(1), attention_mask=mask.flip(1)).logits,
        "loss": loss.detach(),
        "loss of a part": part,
        "loss by count": model(tokens, labels=told["labels"], num_items_in_batch=7).loss,
        "gradient": gradient,
    }


def refusals(model: Any, told: Seen) -> Seen:
    tokens, padded, mask = told["tokens"], told["padded"], told["mask"]
    hole = torch.ones_like(mask)
    hole[0, 3] = 0
    cache = model(tokens[:1]).past_key_values
    return {
        "hole": refusal(lambda: model(tokens, attention_mask=hole)),
        "right": refusal(lambda: model.generate(padded.flip(1), attention_mask=mask.flip(1), max_new_tokens=1)),
        "shape": refusal(lambda: model(tokens, attention_mask=hole[:, 1:])),
        "rows": refusal(lambda: model(tokens, past_key_values=cache)),
        "hidden padding": refusal(lambda: model(padded[:1], attention_mask=1 - mask[:1].flip(1), past_key_values=cache)),
        "assisted": refusal(lambda: model.generate(tokens[:1], assistant_model=model)),
    }


def writes(model: Any, tokenizer: Any, told: Seen) -> Seen:
    """What it writes by itself, by beams with and without a cache, and on from a cache."""
    alone = [model.generate(**tokenizer(prompt, return_tensors="pt"))[0].tolist() for prompt in told["prompts"]]
    batch = tokenizer(told["prompts"], return_tensors="pt", padding=True)
    together = model.generate(**batch)[:, batch.input_ids.shape[1] :]
    beams = [model.generate(**batch, num_beams=3, do_sample=False, max_new_tokens=6, use_cache=cache) for cache in (True, False)]
    first = model.generate(**batch, return_dict_in_generate=True, min_new_tokens=3, max_new_tokens=3)  # nobody ends early
    mask = torch.cat([batch.attention_mask, torch.ones(len(alone), 3, dtype=torch.int64)], 1)
    on = model.generate(first.sequences, attention_mask=mask, past_key_values=first.past_key_values, min_new_tokens=3, max_new_tokens=3)
    again = model.generate(**batch, min_new_tokens=6, max_new_tokens=6)
    torch.manual_seed(3)
    drawn = model.generate(**batch, do_sample=True, temperature=1.0, num_return_sequences=2, max_new_tokens=4)
    return {"alone": alone, "together": together, "beams": beams, "on": [on, again], "drawn": drawn}


def opened(folder: str, told: Seen) -> Seen:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    for parameter in model.parameters():  # a file's stand at any address, by which the product of a single token rounds
        parameter.data = parameter.data.clone()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: Seen = {"training": model.training, "dtype": str(model.dtype), "parameters": model.num_parameters()}
    seen["ids"] = [tokenizer(text).input_ids for text in told["texts"]]
    with torch.enable_grad():
        seen |= scores(model, told)
    with torch.inference_mode():
        seen |= {"refusals": refusals(model, told), **writes(model, tokenizer, told)}
    model.save_pretrained("again")
    tokenizer.save_pretrained("again")
    with torch.inference_mode():
        half = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True, dtype=torch.bfloat16)
        seen["half"] = half(told["tokens"]).logits
        seen["again"] = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)(told["tokens"]).logits
    seen["ids again"] = [AutoTokenizer.from_pretrained("again")(text).input_ids for text in told["texts"]]
    return seen


def of_one(folder: str, told: Seen) -> Seen:
    """What is looked at once: the lines of the card, the pipeline, a model begun anew from the config, a larger vocabulary."""
    write = pipeline("text-generation", model=folder, trust_remote_code=True)
    texts = [out["generated_text"] for out in write(told["prompts"][0])]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True)
    zero = [float(parameter.detach().abs().max()) for name, parameter in model.named_parameters() if "unit.output" in name]
    rows = write.model.resize_token_embeddings(told["vocabulary"] + 3).weight.shape[0]
    logits = write.model(told["tokens"]).logits
    with contextlib.chdir(Path(folder).parent), contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(re.search(r"```python\n(.*?)```", (Path(folder) / "README.md").read_text(encoding="utf-8"), re.S)[1], {})
    return {"card": printed.getvalue(), "pipeline": texts, "first outputs": zero, "resized": [rows, logits.shape[-1]]}


def main() -> None:
    asked, answer = sys.argv[1:]
    told = torch.load(asked, weights_only=True)
    seen = {folder: opened(folder, about) for folder, about in told.items()}
    folder, about = next(iter(told.items()))
    seen["once"] = of_one(folder, about) | {"files": sorted(os.listdir("again"))}
    torch.save(seen, answer)


if __name__ == "__main__":
    main()

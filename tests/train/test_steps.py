"""What a step computes, against plain PyTorch, and that the ways of computing it agree."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edge.model.weights.checkpoint import save_huggingface
from edge.train.data.batch import IGNORED, Batch
from edge.train.distributed import World
from edge.train.metrics import read_log
from edge.train.network import build, model_config
from edge.train.objective import Losses, Objective, counts
from edge.train.texts import open_texts
from tests.train.runs import losses, plain_steps, run, run_config, weights

BASE_16 = {"optimizer": {"base_width": 16, "weight_decay": 0.3, "clip": 0.5}}


def objective(folder: Path, **sections: Any) -> tuple[Objective, Batch]:
    """A run's module with weights that are far from 0, and its first batch."""
    config = run_config(folder, **sections)
    texts = open_texts(config)
    return build(config, texts, World(), print).objective, texts.loader.next()


def documents(batch: Batch) -> list[Batch]:
    """Every document of every row alone, as a batch of one row."""
    found = []
    for tokens, targets, positions in zip(*batch, strict=True):
        begins = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
        for at, end in pairwise(begins):
            found.append(Batch(*(each[at:end].unsqueeze(0) for each in (tokens, targets, positions))))
    return found


@pytest.mark.parametrize(
    "runtime", [{}, {"accumulation": 3}, {"gradient_checkpointing": True, "accumulation": 4}], ids=str
)
def test_steps_are_those_of_plain_pytorch(tmp_path: Path, runtime: dict[str, Any]):
    """AdamW, its schedule, muP's rates, weight decay, and the limit of the gradient's norm."""
    run(tmp_path, runtime=runtime, **BASE_16)
    module, wanted = plain_steps(run_config(tmp_path, **BASE_16))
    found = [(line["loss"], line["gradient_norm"]) for line in read_log(tmp_path / "run")]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=1e-4, rtol=1e-4)
    assert max(norm for _, norm in wanted) > 0.5, "the limit was reached"
    for name, each in module.decoder.state_dict().items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], each, atol=1e-4, rtol=1e-4)


def test_lines_are_means_over_their_steps(tmp_path: Path):
    run(tmp_path, "each", schedule={"steps": 6})
    run(tmp_path, "pairs", schedule={"steps": 6}, log={"every": 3}, evaluation={"every": 100})
    each, pairs = read_log(tmp_path / "each"), read_log(tmp_path / "pairs")
    assert [line["step"] for line in pairs] == [3, 6]
    tokens = [0, *(line["tokens"] for line in each)]
    for line in pairs:
        steps = range(line["step"] - 3, line["step"])
        mean = sum(each[step]["loss"] * (tokens[step + 1] - tokens[step]) for step in steps)
        assert line["loss"] == pytest.approx(mean / (tokens[line["step"]] - tokens[line["step"] - 3]))
        norms = [each[step]["gradient_norm"] for step in steps]
        assert line["gradient_norm"] == pytest.approx(sum(norms) / 3)


@pytest.mark.parametrize("length", [16, 40])
def test_packed_rows_cost_what_their_documents_cost_alone(tmp_path: Path, length: int):
    """Sums over targets: the loss of a row is the mean of its documents', weighted by their targets."""
    module, batch = objective(tmp_path, data={"length": length}, loss={"multi_token": 0.5, "z": 0.1})
    together = module(*batch)
    alone = [(module(*each), counts(each)) for each in documents(batch) if each.tokens.shape[1] > 1]
    assert len(alone) > len(batch.tokens), "rows have several documents"
    for name in ("next_token", "second_token", "z"):
        total = sum(getattr(each, name) for each, _ in alone)
        # A document of one token is all in the count of the next token, and of z.
        single = [each for each in documents(batch) if each.tokens.shape[1] == 1]
        if name != "second_token":
            total = total + sum(getattr(plain_losses(module, each), name) for each in single)
        torch.testing.assert_close(getattr(together, name), torch.as_tensor(total).float())
    assert counts(batch).second_token == sum(each.second_token for _, each in alone)


def plain_losses(module: Objective, batch: Batch) -> Any:
    """By the formulas, one token after the other."""
    logits = module.decoder(batch.tokens, positions=batch.positions)[0]
    first = z = torch.zeros(())
    for row, target in zip(logits, batch.targets[0].tolist(), strict=True):
        if target != IGNORED:
            normaliser = row.exp().sum().log()
            first, z = first + normaliser - row[target], z + normaliser**2
    return Losses(first, z, torch.zeros(()))


def test_losses_are_the_formulas(tmp_path: Path):
    """Cross-entropy, and the squared logarithm of the normaliser (PaLM, section 5)."""
    module, batch = objective(tmp_path, loss={"z": 0.1})
    found = module(*batch)
    wanted = [plain_losses(module, Batch(*(each[row : row + 1] for each in batch))) for row in range(4)]
    torch.testing.assert_close(found.next_token, sum(each.next_token for each in wanted))
    torch.testing.assert_close(found.z, sum(each.z for each in wanted))
    without, _ = objective(tmp_path)
    torch.testing.assert_close(without(*batch).next_token, found.next_token)  # never all logits at a time
    assert without(*batch).z == 0


def test_the_second_token_is_the_one_after_next(tmp_path: Path):
    """DeepSeek-V3, equation 24, on one document: the guess at token i + 2 from tokens 0 .. i + 1."""
    module, batch = objective(tmp_path, loss={"multi_token": 1.0})
    document = max(documents(batch), key=lambda each: each.tokens.shape[1])
    n = document.tokens.shape[1]
    assert n > 4
    assert module.multi_token is not None
    stream = module.decoder.trunk(document.tokens).stream[-1]
    logits = module.multi_token(module.decoder, document.tokens, stream)[0]
    tokens = document.tokens[0].tolist()
    wanted = sum(functional.cross_entropy(logits[i], torch.tensor(tokens[i + 2])) for i in range(n - 2))
    last = int(document.targets[0, -1])  # lies behind the row's end, if the document does
    if last != IGNORED:
        wanted = wanted + functional.cross_entropy(logits[n - 2], torch.tensor(last))
    torch.testing.assert_close(module(*document).second_token, wanted)


def test_gradients_are_those_of_transformers(tmp_path: Path):
    """A Llama-shaped network's loss and gradients against LlamaForCausalLM."""
    from transformers import LlamaForCausalLM

    sections: dict[str, Any] = {
        "model": {
            "model_type": "llama",
            "scale_emb": None,
            "scale_depth": None,
            "dim_model_base": None,
            "tie_word_embeddings": False,
        },
        "data": {"length": 16, "rows": 2},
    }
    module, batch = objective(tmp_path, **sections)
    config = run_config(tmp_path, **sections)
    save_huggingface(
        tmp_path / "hf", model_config(config, open_texts(config).any), module.decoder.state_dict()
    )
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    document = max(documents(batch), key=lambda each: each.tokens.shape[1])
    loss = functional.cross_entropy(
        theirs(document.tokens).logits[0], document.targets[0], ignore_index=IGNORED, reduction="sum"
    )
    loss.backward()
    ours = module(*document).next_token
    ours.backward()
    torch.testing.assert_close(ours, loss)
    gradients = dict(theirs.named_parameters())
    for name, parameter in module.decoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-4, rtol=1e-4, msg=name)


WAYS = {
    "muon": {"optimizer": {"kind": "muon"}},
    "ternary": {"quantization": {"scheme": "ternary-row"}},
    "multi-token": {"loss": {"multi_token": 0.3, "z": 1e-4}},
    "bfloat16": {"runtime": {"precision": "bfloat16"}},
}


@pytest.mark.parametrize("sections", WAYS.values(), ids=WAYS.keys())
def test_every_way_lowers_the_loss(tmp_path: Path, sections: dict[str, Any]):
    run(tmp_path, schedule={"steps": 16, "warm_up": 2}, evaluation={"every": 100}, **sections)
    found = losses(tmp_path / "run")
    assert sum(found[-4:]) / 4 < found[0] - 0.7


def test_bfloat16_is_close_and_keeps_float32_weights(tmp_path: Path):
    run(tmp_path, "float")
    run(tmp_path, "half", runtime={"precision": "bfloat16"})
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "float"), rel=5e-3)
    assert losses(tmp_path / "half") != losses(tmp_path / "float")
    half: dict[str, Tensor] = weights(tmp_path / "half")
    assert any((each != each.bfloat16().float()).any() for each in half.values())


def test_computing_layers_again_changes_nothing(tmp_path: Path):
    run(tmp_path, "kept")
    run(tmp_path, "again", runtime={"gradient_checkpointing": True})
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), rel=1e-6)


@pytest.mark.slow
def test_a_compiled_network_computes_the_same(tmp_path: Path):
    for name, sections in WAYS.items():
        if name == "bfloat16":
            continue
        run(tmp_path, f"{name}-eager", **sections)
        run(tmp_path, f"{name}-compiled", runtime={"compile": True}, **sections)
        assert losses(tmp_path / f"{name}-compiled") == pytest.approx(
            losses(tmp_path / f"{name}-eager"), rel=1e-3
        )


def test_a_loss_in_parts_is_the_whole_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Parts of 7 tokens, the last one shorter: the same sums and gradients."""
    config = run_config(tmp_path)
    found = []
    for most in (7 * 64, 1 << 20):
        monkeypatch.setattr("edge.train.objective._MOST_LOGITS", most)
        texts = open_texts(config)
        objective = build(config, texts, World(), print).objective
        loss = objective(*texts.loader.next()).next_token
        loss.backward()
        found.append((loss.detach(), [each.grad for each in objective.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)

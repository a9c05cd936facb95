"""What a run begins with: the checkpoint of another run, whole or its weights, or a model's folder."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edge.errors import TrainingError
from edge.model.weights.checkpoint import open_checkpoint
from edge.train.checkpoints import CheckpointStore, Loaded, Say, load_weights, step_of
from edge.train.config import StartSection
from edge.train.distributed import World, assign, together
from edge.train.objective import Learner, Objective

CHECKPOINTS = "checkpoints"
"""The folder in that of a run where its checkpoints are."""


def model_folder(start: StartSection) -> Path | None:
    """The folder of a Hugging Face model that the run starts from; None if it starts otherwise."""
    path = None if start.path is None else Path(start.path)
    # A run's folder has weights of its multi-token layer, which are no model.
    if path is None or (path / CHECKPOINTS).is_dir() or not any(path.glob("*.safetensors")):
        return None
    if start.what == "everything":
        raise TrainingError(
            f"'{path}' is a model and holds weights only; set start.what=weights, or name a run's folder."
        )
    return path


def begin_with_weights(start: StartSection, objective: Objective, world: World, say: Say) -> None:
    """Put the weights there that `start` names; nothing for a run that starts otherwise. Raises
    TrainingError.
    """
    if start.path is None or start.what != "weights":
        return
    folder = model_folder(start)
    if folder is None:
        checkpoints, step = _checkpoint(start.path)
        found = load_weights(checkpoints, objective.decoder, world, say, step=step, prefix="decoder.")
        if objective.multi_token is not None and found.host["config"]["loss"]["multi_token"]:
            load_weights(checkpoints, objective.multi_token, world, say, step=step, prefix="multi_token.")
        return
    checkpoint = together(lambda: open_checkpoint(folder), world)
    theirs = {info.name: info.shape for info in checkpoint.tensors}
    parameters = dict(objective.decoder.named_parameters())
    for name in sorted(theirs.keys() | parameters.keys()):
        mine = tuple(parameters[name].shape) if name in parameters else None
        if theirs.get(name) != mine:
            raise TrainingError(
                f"'{folder}' does not fit the run's network: its tensor '{name}' has shape "
                f"{theirs.get(name)}, not "
                f"{mine}; leave the sizes in [model] as that model has them."
            )
    for name, parameter in parameters.items():  # one by one: no process holds the whole model
        assign(parameter, torch.from_numpy(checkpoint.read_float32(name)))


def load_run_weights(start: StartSection, network: nn.Module, prefix: str, world: World, say: Say) -> None:
    """Put weights of another run's checkpoint into a part of the objective that it has too. prefix: of their
    names there. Raises TrainingError; for a run that is continued whole, nothing is done.
    """
    if start.path is not None and start.what == "weights":
        checkpoints, step = _checkpoint(start.path)
        load_weights(checkpoints, network, world, say, step=step, prefix=prefix)


def continue_other(
    start: StartSection, objective: Learner, optimizers: list[torch.optim.Optimizer], say: Say, world: World
) -> Loaded | None:
    """The state of the run that `start` continues; None if it continues none. Raises TrainingError."""
    if start.path is None or start.what != "everything":
        return None
    model_folder(start)
    checkpoints, step = _checkpoint(start.path)
    found = CheckpointStore(checkpoints, 1, world).load(objective, optimizers, say, step=step)
    if found is None:
        raise TrainingError(
            f"'{start.path}' has no checkpoints; name the folder of a run, or one of its checkpoints."
        )
    return found


def _checkpoint(path: str) -> tuple[Path, int | None]:
    """(the folder of checkpoints, the step or None for the newest) of a run's folder, or of a checkpoint's
    own.
    """
    found = Path(path)
    step = step_of(found)
    if step is not None:
        return found.parent, step
    return (found / CHECKPOINTS if (found / CHECKPOINTS).is_dir() else found), None

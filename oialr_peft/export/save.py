"""save_compressed: the model written to a folder, and from there to the Hub."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from torch import nn
from transformers import PreTrainedModel

from ..cards import write_card
from ..compat.torch_ import with_child
from ..compat.transformers_ import write_on_this_process
from ..files import Draft
from ..training.processing import remembered_processing
from ..workers.saving import one_writer
from .compress import check_adapter, compressed
from .processing import warn_if_nothing_reads_inputs
from .publish import EARLIER, publish


def save_compressed(
    model: nn.Module,
    path: str | os.PathLike,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    *,
    processing_class: Any = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> None:
    """Write a small model that needs no base: `import oialr_peft; AutoModelForX.from_pretrained(path)` loads it.

    Every layer of the active adapter is written as two factors, or dense where two factors would hold as much.
    Everything else is written as it is, `modules_to_save` in the place of what they replaced. Loading runs no SVD and
    forms no dense weight. The live model is not changed. Until all is written and readable the folder keeps what it
    holds; then one rename makes it the new model's (publish.py), so a kill or a full disk leaves the old one or the
    new one. The card comes last.

    Where FSDP2 shards the model all processes must call this; process 0 writes. Else every process that calls it does,
    one after the other where they name one folder; push from one of them.

    Args:
        model: a model of transformers with an OIALR adapter, a PEFT model around one, a SentenceTransformer, or a
            model or pipeline of diffusers (no card is written then); each is loaded in its library's own way.
        path: the folder; made if absent. What it holds of an earlier model, or of an adapter, is replaced; other files
            stay.
        push_to_hub: upload what was written in one commit, which also removes an earlier model's files from the
            repository. Other files of the folder stay here. Default `False`.
        repo_id: name of the repository on the Hub; default the folder's name.
        processing_class: the tokenizer, image processor, feature extractor or processor that belongs to the model;
            it is saved beside it, so that pipelines find it. `None` (default): the one that the Trainer had; without
            one a warning, if the kind of model has one and the folder does not.
        private, token, revision, commit_message, create_pr: of the push, as in `push_to_hub` of transformers.

    Raises:
        TypeError: no active OIALR adapter, or a model of another library.
        ValueError: `path` is a file, the adapter is a residual one, a weight holds NaN, or tied weights of an
            encoder-decoder model were trained apart.
        OSError: the folder cannot be written to, or the disk is full; the folder holds what it held before.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`path` must be a folder, but '{folder}' is a file.")
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    commit = {"revision": revision, "commit_message": commit_message, "create_pr": create_pr}

    def push(written: list[str]) -> None:
        if push_to_hub:
            _push(folder, repo_id or folder.resolve().name, [*written, "README.md"], private, token, **commit)

    if _is_of(base, "diffusers"):
        from .diffusion import save_diffusers

        return save_diffusers(base, folder, push)
    body = base[0].auto_model if _is_of(base, "sentence_transformers") else base
    _check(body)
    small = compressed(body)
    with one_writer(body) as writes:
        if writes:
            processing = remembered_processing(body) if processing_class is None else processing_class
            written = _save(small if body is base else _with_body(base, small), folder, processing)
            if processing is None:
                warn_if_nothing_reads_inputs(body, folder)
            write_card(model if body is base else body, folder, kind="compressed", repo_id=repo_id)
            push(written)


def _save(small: Any, folder: Path, processing: Any) -> list[str]:
    """The names of the files that were written."""
    with Draft(folder) as draft:
        write_on_this_process(small)
        small.save_pretrained(str(draft.path))
        if processing is not None:
            processing.save_pretrained(draft.path)
        for card in draft.path.glob("README.md"):  # sentence-transformers writes one; ours comes later
            card.unlink()
        return publish(draft)


def _is_of(model: Any, library: str) -> bool:
    """Whether the class of a model, or one that it inherits from, is this library's."""
    return any(kind.__module__.partition(".")[0] == library for kind in type(model).__mro__)


def _with_body(whole: Any, small: PreTrainedModel) -> Any:
    """A SentenceTransformer with all that `whole` has, but the small model in the place of its transformer."""
    name = next(name for name, module in whole[0].named_children() if module is whole[0].auto_model)
    first = next(name for name, _ in whole.named_children())
    return with_child(whole, first, with_child(whole[0], name, small))


def _check(base: Any) -> None:
    """Refuse what cannot be written as a small model."""
    if not isinstance(base, PreTrainedModel):
        way = "Use `model.merge_and_unload()` and save the dense model in its own way."
        if hasattr(base, "model_body"):  # setfit's
            way = "Save its `model_body`."
        raise TypeError(
            "save_compressed writes models of transformers, sentence-transformers and diffusers; got "
            f"{type(base).__name__}. {way}"
        )
    check_adapter(base)


def _push(
    folder: Path,
    repo_id: str,
    names: list[str],
    private: bool | None,
    token: bool | str | None,
    *,
    revision: str | None,
    commit_message: str | None,
    create_pr: bool,
) -> None:
    """Upload the named files in one commit that removes an earlier model's."""
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr"):
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=repository,
            commit_message=commit_message or "Upload compressed model",
            revision=revision,
            create_pr=create_pr,
            allow_patterns=names,
            delete_patterns=[n for n in api.list_repo_files(repository, revision=revision) if EARLIER.fullmatch(n)],
        )
    except Exception as error:
        if sys.version_info >= (3, 11):  # from there on errors take notes
            error.add_note(
                f"The push to '{repo_id}' failed. The model is complete in '{folder}'; push again, or upload the "
                f"folder with `hf upload {repo_id} {folder}`."
            )
        raise

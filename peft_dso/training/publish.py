"""What leaves a trainer: the adapter with its card, nothing that could run code."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from huggingface_hub import ModelCard
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers.trainer import TRAINING_ARGS_NAME
from trl import RLOOTrainer

from ..export import push_folder, save_card


class PublishingTrainer(RLOOTrainer):
    """TRL's trainer with the model card and the upload of a DSO adapter."""

    groups: tuple[str, ...]
    retain_rows: list[dict[str, Any]]

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        """As TRL's, without the pickle of the arguments: what is saved can be published as it is."""
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """
        As TRL's, with the text of `peft_dso.export.model_card`: how to load and steer the adapter, what it was trained
        on, and what was measured of it (nothing, unless a report of it lies in the output folder). TRL's tags stay.
        """
        super().create_model_card(*args, **kwargs)
        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero() or not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            return
        tags = ModelCard.load(folder / "README.md").data.get("tags") or []
        trained_on = (
            f"{len(self.train_dataset)} questions about {len(set(self.train_dataset['occupation']))} occupations "
            f"(groups: {', '.join(self.groups)}), {self.state.global_step} steps."
        )
        if self.retain_rows:
            trained_on += f" On {len(self.retain_rows)} more it was held to the base model's answers."
        path = save_card(folder, repo_id=self.hub_model_id, trained_on=trained_on)
        card = ModelCard.load(path)
        card.data["tags"] = sorted({*tags, *(card.data.get("tags") or [])})
        card.save(path)

    def push_to_hub(
        self,
        commit_message: Optional[str] = "End of training",
        blocking: bool = True,
        token: Optional[str] = None,
        revision: Optional[str] = None,
        private: Optional[bool] = None,
        **kwargs: Any,
    ) -> Any:
        """
        Save the adapter with its card and upload it to `args.hub_model_id`. Unlike the parent's, nothing but
        safetensors, JSON, Markdown and PNG files leaves the folder.

        Args:
            commit_message (`str`, defaults to `"End of training"`): of the commit.
            blocking (`bool`, defaults to `True`): wait for the upload.
            token (`str`, *optional*): default `args.hub_token`, or the stored one.
            revision (`str`, *optional*): branch; default `args.hub_revision`, or main.
            private (`bool`, *optional*): whether to make a new repository private; default `args.hub_private_repo`.
            **kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`: the commit, or a `Future` of it if not `blocking`.
        """
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": str(self.hub_model_id).rpartition("/")[2], **kwargs})
        return push_folder(
            self.args.output_dir,
            str(self.hub_model_id),
            revision=revision if revision is not None else self.args.hub_revision,
            token=token,
            commit_message=commit_message,
            blocking=blocking,
        )

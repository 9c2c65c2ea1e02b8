"""Errors of base models that come from the store."""

from app.core.db.blob_keys import NamedBlob


class ModelUnavailableError(Exception):
    """A base model is not here and cannot be fetched now. The message says why and what to do."""

    @classmethod
    def of_file(cls, name: str, blob: NamedBlob, what: str) -> "ModelUnavailableError":
        """The error of a file that the store has lost or damaged.

        Args:
            name: its name.
            blob: what its row says of it.
            what: what is wrong, as the end of a sentence that begins with its name.
        """
        model_id, _ = blob.model or ("", "")
        return cls(
            f"The file {name} of the base model {model_id} {what} in the store ({blob.key}). Run "
            f"`tunery doctor --deep --repair`, then `tunery models install {model_id}` on a "
            "machine that has it."
        )

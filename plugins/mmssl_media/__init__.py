"""Video and sound: how they are read, and datasets of media files."""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_modalities(register: Register) -> None:
    """Frames and log-mel spectrograms."""
    register("video", "mmssl_media.video:Video")
    register("audio", "mmssl_media.audio:Audio")


@hookimpl
def register_datasets(register: Register) -> None:
    """Lists of files, and files that are made."""
    register("manifest", "mmssl_media.manifest:Manifest")
    register("synthetic", "mmssl_media.synthetic:Synthetic")

"""Video and sound: how they are read, and datasets of media files."""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_modalities(register: Register) -> None:
    """Frames, log-mel spectrograms and pictures."""
    register("video", "mmssl_media.video:Video")
    register("audio", "mmssl_media.audio:Audio")
    register("image", "mmssl_media.image:Image")


@hookimpl
def register_datasets(register: Register) -> None:
    """Lists of files, folders, archives, and files that are made."""
    register("manifest", "mmssl_media.manifest:Manifest")
    register("folder", "mmssl_media.folder:Folder")
    register("shards", "mmssl_media.shards:Shards")
    register("synthetic", "mmssl_media.synthetic:Synthetic")


@hookimpl
def register_commands(register: Register) -> None:
    """What is done to files before a run reads them."""
    register("data index", "mmssl_media.commands.index:index")
    register("data transcode", "mmssl_media.commands.transcode:transcode")
    register("data check", "mmssl_media.commands.check:check")
    register("data shard", "mmssl_media.commands.shard:shard")

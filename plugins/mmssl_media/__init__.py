"""Video and sound: how they are read, and datasets of media files."""

from mmssl import hookimpl
from mmssl.hooks import Register


@hookimpl
def register_modalities(register: Register) -> None:
    """Frames, log-mel spectrograms, pictures, waveforms and text."""
    register("video", "mmssl_media.video:Video")
    register("audio", "mmssl_media.audio:Audio")
    register("image", "mmssl_media.image:Image")
    register("spectrogram", "mmssl_media.spectrogram:Spectrogram")
    register("waveform", "mmssl_media.waveform:Waveform")
    register("text", "mmssl_media.text:Text")


@hookimpl
def register_datasets(register: Register) -> None:
    """Lists of files, folders, archives, files that are made, and published benchmarks."""
    register("manifest", "mmssl_media.manifest:Manifest")
    register("folder", "mmssl_media.folder:Folder")
    register("shards", "mmssl_media.shards:Shards")
    register("synthetic", "mmssl_media.synthetic:Synthetic")
    register("synthetic_sequences", "mmssl_media.synthetic_sequences:SyntheticSequences")
    register("mixed", "mmssl_media.mixed:Mixed")
    register("ucf101", "mmssl_media.benchmarks.ucf101:UCF101")
    register("hmdb51", "mmssl_media.benchmarks.hmdb51:HMDB51")
    register("esc50", "mmssl_media.benchmarks.esc50:ESC50")
    register("dcase2014", "mmssl_media.benchmarks.dcase2014:DCASE2014")
    register("kinetics", "mmssl_media.benchmarks.kinetics:Kinetics")
    register("kinetics_sounds", "mmssl_media.benchmarks.kinetics:KineticsSounds")
    register("audioset", "mmssl_media.benchmarks.audioset:AudioSet")
    register("charades", "mmssl_media.benchmarks.charades:Charades")
    register("moments_in_time", "mmssl_media.benchmarks.moments:MomentsInTime")
    register("howto100m", "mmssl_media.benchmarks.howto100m:HowTo100M")
    register("youcook2", "mmssl_media.benchmarks.youcook2:YouCook2")
    register("msrvtt", "mmssl_media.benchmarks.msrvtt:MSRVTT")
    register("imagenet", "mmssl_media.benchmarks.imagenet:ImageNet")


@hookimpl
def register_commands(register: Register) -> None:
    """What is done to files before a run reads them."""
    register("data index", "mmssl_media.commands.index:index")
    register("data transcode", "mmssl_media.commands.transcode:transcode")
    register("data check", "mmssl_media.commands.check:check")
    register("data shard", "mmssl_media.commands.shard:shard")
    register("data vocabulary", "mmssl_media.commands.vocabulary:vocabulary")

"""Make the files that the loader's benchmarks read: 10 s, 340 by 256, 30 fps, H.264 and AAC.

The frames are moving textures with noise, so that the codec has work as with real video::

    python benchmarks/loader_files.py FOLDER --count 32 --gop 12

The other benchmarks make them by themselves, once, in the user's cache folder.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mmssl_media.synthetic import cache_folder

SECONDS, FPS, RATE = 10, 30, 44_100


def write_file(path: Path, *, seed: int, gop: int, size: tuple[int, int] = (340, 256)) -> None:
    """One file with a keyframe every ``gop`` frames; it appears under its name when complete."""
    rng = np.random.default_rng(seed)
    width, height = size
    canvas = rng.uniform(0, 255, (12, 16, 3)).astype(np.float32)
    canvas = canvas.repeat(2 * height // 12 + 1, 0).repeat(2 * width // 16 + 1, 1)
    for _ in range(3):  # blur the blocks' edges
        canvas = (canvas + np.roll(canvas, 5, 0) + np.roll(canvas, 5, 1)) / np.float32(3)
    noisy = canvas + rng.normal(0, 8, canvas.shape)
    texture = noisy.clip(0, 255).astype(np.uint8)
    phase = rng.uniform(0, 2 * np.pi, 2)
    part = path.with_name(path.name + ".part")
    with av.open(str(part), "w", format="mp4") as out:
        video = out.add_stream("libx264", rate=FPS, options={"preset": "medium", "crf": "23"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.gop_size = gop
        audio = out.add_stream("aac", rate=RATE, layout="stereo")
        for number in range(SECONDS * FPS):
            angle = phase + 2 * np.pi * number / FPS / np.array([3.1, 4.7])
            top, left = ((1 + np.sin(angle)) / 2 * [height, width]).astype(int)
            image = np.ascontiguousarray(texture[top : top + height, left : left + width])
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        sound = rng.normal(0, 0.1, (2, SECONDS * RATE)).astype(np.float32)
        sound += 0.3 * np.sin(np.arange(SECONDS * RATE) * rng.uniform(0.02, 0.2)).astype(np.float32)
        waves = av.AudioFrame.from_ndarray(sound, format="fltp", layout="stereo")
        waves.sample_rate, waves.pts, waves.time_base = RATE, 0, Fraction(1, RATE)
        out.mux(audio.encode(waves))
        out.mux(audio.encode(None))
    part.replace(path)


def write_files(
    folder: Path, *, count: int, gop: int, size: tuple[int, int] = (340, 256)
) -> list[Path]:
    """``count`` files; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_file(path, seed=number, gop=gop, size=size)
    return paths


def file_list(*, count: int, gop: int) -> Path:
    """A manifest of ``count`` files in the user's cache folder, which are made if missing."""
    folder = cache_folder() / "benchmarks" / f"gop{gop}"
    paths = write_files(folder, count=count, gop=gop)
    listed = folder / f"{count}.csv"
    listed.write_text("path\n" + "".join(f"{path.name}\n" for path in paths))
    return listed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--gop", type=int, default=12)
    arguments = parser.parse_args()
    write_files(arguments.folder, count=arguments.count, gop=arguments.gop)

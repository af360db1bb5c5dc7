"""Make the files that the loader's benchmarks read: 10 s, 30 fps, H.264 and AAC.

Two scenes, so that the codec has work as with real video: in ``pan`` all of a noisy texture moves,
so hardly a frame goes undecoded on the way to a later one; in ``still`` the camera rests, three
objects move, and every frame has noise of its own::

    python benchmarks/loader_files.py FOLDER --count 32 --gop 12 --scene still

The other benchmarks make them by themselves, once, in the user's cache folder.
"""

import argparse
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np

from mmssl.data.cache import cache_folder

Scene = Literal["pan", "still"]

SECONDS, FPS, RATE = 10, 30, 44_100


def write_file(
    path: Path, *, seed: int, gop: int, size: tuple[int, int] = (340, 256), scene: Scene = "pan"
) -> None:
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
            if scene == "pan":
                top, left = ((1 + np.sin(angle)) / 2 * [height, width]).astype(int)
                image = texture[top : top + height, left : left + width]
            else:
                image = _objects(texture, angle, height, width)
                noise = rng.normal(0, 2, image.shape)
                image = (image + noise).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
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


def _objects(texture: np.ndarray, angle: np.ndarray, height: int, width: int) -> np.ndarray:
    """A part of the texture at rest, and others that move over it."""
    image = texture[:height, :width].copy()
    for number in range(3):
        tall, wide = height // (3 + number), width // (4 + number)
        places = (1 + np.sin(angle * (1 + number / 2) + number)) / 2
        top, left = (places * [height - tall, width - wide]).astype(int)
        image[top : top + tall, left : left + wide] = texture[height : height + tall, -wide:]
    return image


def write_files(
    folder: Path, *, count: int, gop: int, size: tuple[int, int] = (340, 256), scene: Scene = "pan"
) -> list[Path]:
    """``count`` files; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_file(path, seed=number, gop=gop, size=size, scene=scene)
    return paths


def file_list(
    *, count: int, gop: int, size: tuple[int, int] = (340, 256), scene: Scene = "pan"
) -> Path:
    """A manifest of ``count`` files in the user's cache folder, which are made if missing."""
    folder = cache_folder() / "benchmarks" / f"{scene}-{size[0]}x{size[1]}-gop{gop}"
    paths = write_files(folder, count=count, gop=gop, size=size, scene=scene)
    listed = folder / f"{count}.csv"
    listed.write_text("path\n" + "".join(f"{path.name}\n" for path in paths))
    return listed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--gop", type=int, default=12)
    parser.add_argument("--scene", choices=get_args(Scene), default="pan")
    arguments = parser.parse_args()
    write_files(arguments.folder, count=arguments.count, gop=arguments.gop, scene=arguments.scene)

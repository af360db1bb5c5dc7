"""``mmssl data vocabulary``: the words of a dataset's captions, the most frequent first."""

import multiprocessing
import signal
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmssl.cli.terminal import Terminal

# So many samples are counted by a process at a time.
_PART = 5000


def vocabulary(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="A manifest with a column text or texts, and KEY=VALUE for parameters of the "
            "dataset; use=NAME for another one; or a recipe (.yaml), for its data.train.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The text file to write.")],
    size: Annotated[
        int,
        typer.Option(min=3, help="Numbers that there are, with 0 for padding; as in the recipe."),
    ] = 2**16,
    min_count: Annotated[
        int, typer.Option(min=1, help="How often a word must occur to be in it.")
    ] = 1,
) -> int:
    """Write the words of a dataset's captions, one a line, the most frequent first.

    Counted is what the modality text reads: of each sample all texts in its field texts, or else
    its field text. Equally frequent words are in the order of their characters.

    Examples:
      mmssl data vocabulary captions.csv -o words.txt
      mmssl data vocabulary use=howto100m path=HowTo100M -o words.txt --min-count 5
      mmssl data vocabulary recipes/my.yaml -o words.txt
    """
    from mmssl.cli.terminal import Terminal
    from mmssl.errors import UserError
    from mmssl.training.checkpoints import write_atomically

    if output.is_dir() or not output.absolute().parent.is_dir():
        problem = "is a folder" if output.is_dir() else f"there is no folder {output.parent}"
        raise UserError(f"-o {output}: {problem}; name the file to write")
    if output.exists() and any(Path(word).exists() and output.samefile(word) for word in data):
        raise UserError(f"-o {output}: is the data themselves; choose another name")
    terminal = Terminal()
    try:
        counts, samples, bad = _count(_dataset(data), terminal)
    except KeyboardInterrupt:
        print(f"mmssl: interrupted; {output} was not written", file=sys.stderr)
        return 130
    if bad:
        terminal.say(f"{bad:,} samples have a field texts that is no JSON list: not counted")
    kept = [word for word, count in counts.items() if count >= min_count]
    if not kept:
        few = f" {min_count} times" if counts else ""
        raise UserError(f"{data[0]}: no word occurs{few} in the fields text and texts")
    kept.sort(key=lambda word: (-counts[word], word))
    written = kept[: size - 1]
    text = "".join(f"{word}\n" for word in written)
    write_atomically(output, lambda path: path.write_text(text, encoding="utf-8"))
    share = sum(counts[word] for word in written) / counts.total()
    terminal.say(
        f"{len(written):,} of {len(counts):,} words, {share:.1%} of the {counts.total():,} that "
        f"{samples:,} samples have, in {output}"
    )
    return 0


def _count(dataset: Any, terminal: "Terminal") -> tuple[Counter[str], int, int]:
    """How often each word occurs; in how many samples there are any; how many are damaged."""
    dataset.materialise(terminal)
    size = len(dataset)
    parts = [range(first, min(first + _PART, size)) for first in range(0, size, _PART)]
    counts: Counter[str] = Counter()
    samples = bad = 0
    with (
        terminal.task("counting words", size) as advance,
        closing(_counted(dataset, parts)) as all_,
    ):
        for part, (words, with_words, damaged) in zip(parts, all_, strict=True):
            counts.update(words)
            samples, bad = samples + with_words, bad + damaged
            advance(len(part))
    return counts, samples, bad


def _counted(dataset: Any, parts: Sequence[range]) -> Generator[tuple[Counter[str], int, int]]:
    """What is counted in each part, on all cores."""
    from mmssl.data.cores import cores
    from mmssl.errors import UserError

    if len(parts) == 1:
        yield _count_rows(dataset, parts[0])
        return
    # fork: what the dataset has listed is there at once, and need not be copied.
    pool = ProcessPoolExecutor(
        min(cores(), len(parts)),
        mp_context=multiprocessing.get_context("fork"),
        initializer=_begin,
        initargs=(dataset,),
    )
    try:
        yield from pool.map(_count_part, parts)
    except BrokenProcessPool as error:
        raise UserError("a process that counted words died; is there memory?") from error
    finally:
        pool.shutdown(cancel_futures=True)


#: In a process of the pool.
_dataset_here: Any = None


def _begin(dataset: Any) -> None:
    global _dataset_here
    _dataset_here = dataset
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what it means


def _count_part(rows: range) -> tuple[Counter[str], int, int]:
    return _count_rows(_dataset_here, rows)


def _count_rows(dataset: Any, rows: range) -> tuple[Counter[str], int, int]:
    from mmssl.errors import BadMedia
    from mmssl_media.text import caption_texts, words_of

    counts: Counter[str] = Counter()
    samples = bad = 0
    for row in rows:
        try:
            texts = caption_texts(dataset.sample(row))
        except BadMedia:
            texts, bad = [], bad + 1
        words = [word for text in texts for word in words_of(text)]
        counts.update(words)
        samples += bool(words)
    return counts, samples, bad


def _dataset(words: Sequence[str]) -> Any:
    """The dataset that is named by itself, or by a recipe."""
    from mmssl.pretrained.dataset import named_dataset

    if not words[0].lower().endswith((".yaml", ".yml")):
        return named_dataset(words).build()
    return _training_data(words[0], words[1:]).build()


def _training_data(recipe: str, overrides: Sequence[str]) -> Any:
    """A recipe's data.train alone: what else it names may be what this command is to make."""
    import os

    from pydantic import ValidationError

    from mmssl.errors import UserError
    from mmssl.recipe.compose import report, resolve
    from mmssl.recipe.model import DatasetSpec, locate
    from mmssl.recipe.typed import Typed, validate
    from mmssl.recipe.yaml12 import located
    from mmssl.registry import discover

    class Train(Typed):
        train: DatasetSpec

    tree = resolve(recipe, overrides, os.environ)
    plain = tree.python()
    data = plain.get("data") if isinstance(plain, dict) else None
    if not isinstance(data, dict) or "train" not in data:
        raise UserError(f"{recipe}: has no data.train, whose captions could be counted")
    try:
        model = validate(Train, {"train": data["train"]}, {"registry": discover()})
    except ValidationError as error:
        paths = [(("data", *found["loc"]), found["msg"]) for found in error.errors()]
        raise report([located(locate(tree, path)[0], path, msg) for path, msg in paths]) from None
    return model.train

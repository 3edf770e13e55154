"""General image conversations for co-training (specification 9.9), in the form of LLaVA and Bunny.

    [ {"id": ..., "image": "folder/picture.jpg",
       "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A cup."}]} ]

The same objects, one per line, are read too. The file is scanned once for byte ranges (16 bytes a sample in memory);
pictures are opened when a sample is asked for. Samples without "image" are text only.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from ..datatypes import Image
from ..errors import DataError
from ..imaging import MAX_DECODED
from ..wording import defuse
from .jsonscan import load, records
from .prompts import Message

IMAGE_MARK = '<image>'
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
ROLES = {'human': 'user', 'user': 'user', 'gpt': 'assistant', 'assistant': 'assistant'}
IN_A_ROW = 20
"""Samples that may fail one after the other before the source counts as broken."""


@dataclass(frozen=True)
class Sample:
    """A closed dialogue: turns of user and assistant in turn, and the picture of the first user turn, if any.

    Attributes:
        image: uint8 RGB (H, W, 3), or None for text only; the model squeezes it to its input size.
    """

    name: str
    messages: list[Message]
    image: Image | None


class Conversations:
    """A conversations file opened for reading. Can be sent to worker processes: it holds no open file.

    Attributes:
        errors: how often which kind of fault was met by :meth:`draw`. examples: one message of each kind.
        draws: samples given out by :meth:`draw`.
    """

    def __init__(self, file: Path, images: Path, ranges: Any) -> None:
        self.file, self.images, self._ranges = file, images, ranges
        self.errors: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.draws = 0

    @staticmethod
    def open(file: str | Path, images: str | Path | None = None) -> Conversations:
        """Scan a file.

        Args:
            images: folder that picture paths are relative to; the folder of the file if None.

        Raises:
            DataError: not JSON, or nothing in it.
        """
        path = Path(file)
        starts = array('q')
        for record in records(path, depth=0):
            starts.extend((record.start, record.end))
        if not starts:
            raise DataError(f'{path} holds no conversations')
        ranges = np.frombuffer(starts, dtype=np.int64).reshape(-1, 2).copy()
        return Conversations(path, Path(images) if images is not None else path.parent, ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def read(self, k: int) -> Sample:
        """Sample k.

        Raises:
            DataError: not of the form, or its picture is missing, outside the folder, or not a picture.
        """
        return self._read(k)[1]

    def draw(self, k: int) -> Sample:
        """Sample k, or the next one that can be used; every fault on the way is counted in ``errors``.

        Raises:
            DataError: ``IN_A_ROW`` samples one after the other cannot be used; says how many of which fault.
        """
        for step in range(min(IN_A_ROW, len(self))):
            kind, found = self._try((k + step) % len(self))
            if isinstance(found, Sample):
                self.draws += 1
                return found
            self.errors[kind] += 1
            self.examples.setdefault(kind, found)
        raise DataError(
            f'{self.file}: {min(IN_A_ROW, len(self))} samples from number {k} on cannot be used: {self.summary()}'
        )

    def summary(self) -> str:
        """Faults met so far in one line, with an example of each; '' without any."""
        return '; '.join(f'{n} x {kind} (for example {self.examples[kind]})' for kind, n in self.errors.most_common())

    def _try(self, k: int) -> tuple[str, Sample | str]:
        try:
            return self._read(k)
        except _Fault as err:
            return err.kind, str(err)

    def _read(self, k: int) -> tuple[str, Sample]:
        start, end = (int(v) for v in self._ranges[k])
        where = f'{self.file.name} sample {k}'
        item = load(self.file, start, end)
        if not isinstance(item, Mapping):
            raise _Fault('form', f'{where} is not an object')
        picture = item.get('image')
        if picture is not None and not isinstance(picture, str):
            raise _Fault('several images', f'{where}: "image" is {picture!r}, one path is needed')
        messages = _messages(item.get('conversations'), bool(picture), where)
        image = self._picture(picture, where) if picture else None
        return '', Sample(str(item.get('id', k)), messages, image)

    def _picture(self, name: str, where: str) -> Image:
        file = self.images / name
        # The file comes from elsewhere: it must not name pictures outside its folder.
        if Path(name).is_absolute() or '..' in Path(name).parts:
            raise _Fault('image outside', f'{where}: {name!r} is not below {self.images}')
        try:
            with PilImage.open(file, formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_DECODED:
                    raise _Fault('image size', f'{where}: {name} has {picture.width} x {picture.height} pixels')
                return np.asarray(picture.convert('RGB'))
        except FileNotFoundError:
            raise _Fault('image missing', f'{where}: no picture {file}') from None
        except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as err:
            raise _Fault('image damaged', f'{where}: {file}: {err}') from None


class _Fault(DataError):
    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _messages(turns: Any, pictured: bool, where: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise _Fault('form', f'{where} has no "conversations"')
    out: list[Message] = []
    marks = 0
    for turn in turns:
        said, text = (turn.get('from'), turn.get('value')) if isinstance(turn, Mapping) else (None, None)
        if said == 'system':  # the model has a system text of its own
            continue
        role = ROLES.get(str(said))
        if role is None or not isinstance(text, str):
            raise _Fault('form', f'{where}: a turn is {turn!r}, {{"from": "human" or "gpt", "value": text}} is needed')
        if role != ('assistant' if len(out) % 2 else 'user'):
            raise _Fault('turns', f'{where}: human and gpt have to take turns, human first')
        marks += text.count(IMAGE_MARK)
        content = defuse(text.replace(IMAGE_MARK, '').strip())
        if not content:
            raise _Fault('empty turn', f'{where}: the turn of {said!r} says nothing')
        out.append({'role': role, 'content': content})
    if not out or len(out) % 2:
        raise _Fault('turns', f'{where} does not end with an answer')
    if marks > 1 or (marks and not pictured):
        raise _Fault('several images' if marks > 1 else 'image missing', f'{where} speaks of {marks} images')
    return out

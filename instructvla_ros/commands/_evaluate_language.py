"""`instructvla evaluate language`: captions, answers, responses, and what was forgotten."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

HELP = 'captions, answers and responses on VLA-IT annotations; forgetting against a base checkpoint'


def add_way(ways: Any) -> None:
    """Declare the way and its options."""
    way = ways.add_parser('language', help=HELP, description=HELP)
    way.set_defaults(run_way=run)
    way.add_argument('--checkpoint', default='', help='folder, run directory or hub id')
    way.add_argument('--data', default='', metavar='DIR', help='dataset whose episodes are annotated')
    way.add_argument('--annotations', default='', metavar='FILE', help='VLA-IT file (bridge_instruction.json ...)')
    way.add_argument('--images', default='', metavar='DIR', help='first frames: <file_path>/<episode_id>.jpg')
    way.add_argument('--view', action='append', default=[], help='repeatable, side by side (default: all that it sees)')
    way.add_argument('--general', default='', metavar='FILE', help='held-out conversations (LLaVA or Bunny form)')
    way.add_argument('--general-images', default='', metavar='DIR', help="their pictures (default: the file's folder)")
    way.add_argument(
        '--base', default='', metavar='DIR', help='checkpoint before the training, for the forgetting figure'
    )
    way.add_argument('--limit', type=int, default=0, help='questions of each kind, and general samples; 0: all')
    way.add_argument('--length', type=int, default=350, help='most tokens of prompt and answer (default: 350)')
    way.add_argument('--wordnet', default='', metavar='DIR', help='WordNet database, for synonyms in METEOR')
    way.add_argument('--sbert', default='', metavar='DIR', help='Sentence-BERT model folder')
    way.add_argument('--simcse', default='', metavar='DIR', help='SimCSE model folder')
    way.add_argument('--simcse-pooling', default='pooler', choices=('pooler', 'cls'), help='supervised: pooler')
    way.add_argument('--device', default='auto')
    way.add_argument('--name', default='', help='of the row in the table')
    way.add_argument('--out', default='', help='folder; the same one continues a run (default: runs/language-<name>)')
    way.add_argument('--tables', action='store_true', help='only write the tables, with what the folder has')
    way.add_argument('--json', action='store_true', help='print the scores as one JSON object')


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; 0 when done.

    Raises:
        SetupError: a library or database is missing. CheckpointError, ConfigError, DataError: what was asked for.
    """
    from ..errors import ConfigError, SetupError

    try:
        from ..evaluation import language, language_report
    except ImportError as err:
        raise SetupError(f"{err.name} is missing; install the package with: pip install '.[model,language]'") from err
    from ..evaluation.simpler import claim, read_rows

    metrics, modules = _metrics(arguments)
    if not arguments.tables:
        _check(arguments, ConfigError)
    name = arguments.name or (Path(arguments.checkpoint).name if arguments.checkpoint else 'checkpoint')
    folder = Path(arguments.out or f'runs/language-{name}')
    if not arguments.tables:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {k: getattr(arguments, k) for k in ('data', 'annotations', 'images', 'view', 'general', 'length')}
        sides = [(arguments.checkpoint, folder)] + ([(arguments.base, folder / 'base')] if arguments.base else [])
        for checkpoint, place in sides:
            speaker = _speaker(checkpoint, arguments.device, arguments.length)
            place.mkdir(exist_ok=True)
            claim(place, {'checkpoint': checkpoint, 'revision': speaker.bundle.revision, **wanted})
            if place == folder and (arguments.data or arguments.annotations):
                _ask(language, speaker, _questions(arguments, language, speaker), place, arguments)
            if arguments.general:
                _general(language, speaker, place, arguments)
    rows = read_rows(folder / language.ANSWERS)
    own = [r for r in rows if r['kind'] in language.KINDS]
    scores = language.score(own, metrics) if own else {}
    changes = None
    if (folder / 'base' / language.GENERAL).is_file() and (folder / language.GENERAL).is_file():
        changes = language.forgetting(folder, folder / 'base', metrics)
    page = language_report.write(
        folder,
        scores,
        name=name,
        note=f'measured here, on {_source(arguments)}' if scores else '',
        changes=changes,
        base=Path(arguments.base).name,
        rows=rows,
        facts={'METEOR matches': modules},
        command=shlex.join(['instructvla', *sys.argv[1:]]),
    )
    if arguments.json:
        print((folder / 'summary.json').read_text(encoding='utf-8'))
    else:
        _print(scores, changes)
    print(f'table: {page}', file=sys.stderr)
    return 0


def _source(arguments: argparse.Namespace) -> str:
    """Name of the annotations, for a reader who compares rows."""
    places = [Path(p).name for p in (arguments.annotations, arguments.data) if p]
    return ' and '.join(places) or 'the answers of the folder'


def _check(arguments: argparse.Namespace, error: type[Exception]) -> None:
    if not arguments.checkpoint:
        raise error('--checkpoint is needed: a folder, a run directory or a hub id')
    if arguments.images and not arguments.annotations:
        raise error('--images belongs to --annotations FILE')
    if arguments.annotations and not (arguments.images or arguments.data):
        raise error('--annotations needs pictures: --images DIR, or --data DIR with a dataset of this package')
    if not (arguments.data or arguments.annotations or arguments.general):
        raise error('nothing to ask: give --data DIR, --annotations FILE with --images DIR, or --general FILE')
    if arguments.base and not arguments.general:
        raise error('--base compares general conversations: give --general FILE')
    if arguments.limit < 0 or arguments.length < 1:
        raise error('--limit must not be negative and --length must be at least 1')


def _metrics(arguments: argparse.Namespace) -> tuple[list[Any], str]:
    from ..evaluation.language_metrics import Bleu, CiderD, Meteor, Similarity

    metrics: list[Any] = []
    for name, folder, pooling in (
        ('SBERT', arguments.sbert, 'mean'),
        ('SimCSE', arguments.simcse, arguments.simcse_pooling),
    ):
        if folder:
            from ..model.sentence_encoder import SentenceEncoder

            metrics.append(Similarity(name, SentenceEncoder(folder, pooling)))
    meteor = Meteor(arguments.wordnet)
    return [*metrics, Bleu(1), Bleu(4), meteor, CiderD()], meteor.modules


def _speaker(checkpoint: str, device: str, length: int) -> Any:
    from ..evaluation.language import Speaker
    from ..model.checkpoint import load
    from ..model.device import pick_device, pick_dtype

    place = pick_device(device)
    return Speaker(load(checkpoint, device=place, dtype=pick_dtype('auto', place)), length)


def _questions(arguments: argparse.Namespace, language: Any, speaker: Any) -> Any:
    if arguments.data:
        seen = speaker.bundle.config.views
        return language.from_dataset(arguments.data, arguments.annotations, arguments.view, seen)
    return language.from_files(arguments.annotations, arguments.images)


def _ask(language: Any, speaker: Any, questions: Any, folder: Path, arguments: argparse.Namespace) -> None:
    counts: dict[str, int] = {}

    def wanted() -> Any:
        for question in questions:
            counts[question.kind] = counts.get(question.kind, 0) + 1
            if not arguments.limit or counts[question.kind] <= arguments.limit:
                yield question
            elif min(counts.get(k, 0) for k in language.KINDS) > arguments.limit:
                return

    _count(language.answer_all(speaker, wanted(), folder / language.ANSWERS), 'answers', arguments.json)


def _general(language: Any, speaker: Any, folder: Path, arguments: argparse.Namespace) -> None:
    from ..data.conversations import Conversations

    data = Conversations.open(arguments.general, arguments.general_images or None)
    losses = language.loss_all(speaker, data, folder / language.GENERAL, arguments.limit)
    _count(losses, f'losses of {folder.name}', arguments.json)
    questions = language.from_conversations(data, arguments.limit)
    answers = language.answer_all(speaker, questions, folder / language.ANSWERS)
    _count(answers, f'general answers of {folder.name}', arguments.json)


def _count(rows: Any, what: str, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn('{task.completed} {task.description}'), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), disable=quiet) as bar:
        task = bar.add_task(what, total=None)
        for _ in rows:
            bar.advance(task)


def _print(scores: Any, changes: Any) -> None:
    for kind, found in scores.items():
        print(f'{kind}: ' + ', '.join(f'{m} {f.value:.2f} ({f.low:.2f} .. {f.high:.2f})' for m, f in found.items()))
    for name, c in (changes or {}).items():
        moved = c['change']
        how = 'no relative change: the base scores 0'
        if moved is not None:
            how = f'{100 * moved.value:+.1f} % ({100 * moved.low:+.1f} .. {100 * moved.high:+.1f})'
        print(f'forgetting, {name}: {c["base"]:.3f} -> {c["now"]:.3f}, {how}')

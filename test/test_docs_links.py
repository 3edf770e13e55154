"""Links of README and docs: files and headings they point to are there, pictures too, and every page can be found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [ROOT / 'README.md', ROOT / 'CHANGELOG.md', *(ROOT / 'docs').rglob('*.md'), *(ROOT / 'models').rglob('*.md')]
)
_LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)(?:\s+"[^"]*")?\)')
_HEADING = re.compile(r'^#{1,6}\s+(.*?)\s*#*$', re.M)

pytestmark = pytest.mark.skipif(not (ROOT / 'docs').is_dir(), reason='the documentation is not beside this test')


def prose(text: str) -> str:
    """Text without code: what looks like a link there is none."""
    return re.sub(r'`[^`\n]*`', '', re.sub(r'^(```|~~~).*?^\1', '', text, flags=re.M | re.S))


def links(page: Path) -> Iterator[str]:
    """Targets of the links of a page."""
    return (m.group(1) for m in _LINK.finditer(prose(page.read_text(encoding='utf-8'))))


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as GitHub makes them."""
    found: dict[str, int] = {}
    out = set()
    text = re.sub(r'^(```|~~~).*?^\1', '', page.read_text(encoding='utf-8'), flags=re.M | re.S)
    for heading in _HEADING.findall(text):
        words = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading.replace('`', ''))
        name = re.sub(r'[^\w\- ]', '', words.lower()).replace(' ', '-')
        count = found.get(name, 0)
        found[name] = count + 1
        out.add(f'{name}-{count}' if count else name)
    return out


def problems(page: Path) -> list[str]:
    """What is wrong with the links of a page."""
    out = []
    for link in links(page):
        if re.match(r'[a-z]+:', link):
            continue  # somebody else's; a test does not go out
        place, _, anchor = link.partition('#')
        target = (page.parent / place).resolve() if place else page
        if not target.exists():
            out.append(f'{page.relative_to(ROOT)}: {link}: there is no {place}')
        elif anchor and target.suffix == '.md' and anchor not in anchors(target):
            out.append(f'{page.relative_to(ROOT)}: {link}: {target.name} has no such heading')
        elif ROOT not in (target, *target.parents):
            out.append(f'{page.relative_to(ROOT)}: {link}: leaves the repository')
    return out


def test_the_reader_finds_links_and_headings(tmp_path: Path):
    """Guard of the guard."""
    page = tmp_path / 'a.md'
    page.write_text(
        '# One `two`: three\n## Same\n## Same\n[a](b.md#c) ![p](p.png "t") `[no](x)`\n```\n[no](y)\n# no\n```\n'
    )
    assert list(links(page)) == ['b.md#c', 'p.png']
    assert anchors(page) == {'one-two-three', 'same', 'same-1'}


def test_broken_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setattr(sys.modules[__name__], 'ROOT', tmp_path)
    (tmp_path / 'b.md').write_text('# There\n')
    page = tmp_path / 'a.md'
    page.write_text('[1](b.md#there) [2](b.md#nowhere) [3](c.md) [4](https://example.org/x) [5](#self)\n')
    assert [p.split(': ')[1] for p in problems(page)] == ['b.md#nowhere', 'c.md', '#self']


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links(page: Path):
    assert problems(page) == []


def test_every_page_can_be_reached_from_the_readme():
    seen, waiting = set(), [ROOT / 'README.md']
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != '.md' or not page.is_file():
            continue
        seen.add(page)
        waiting += [(page.parent / link.partition('#')[0]).resolve() for link in links(page) if '://' not in link]
    lost = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'docs').rglob('*.md') if p not in seen)
    assert not lost, f'no page leads to {lost}'

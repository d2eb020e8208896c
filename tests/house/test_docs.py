"""Every command and every line of Python in README.md and docs/*.md is run, as a reader would run it (reading.py).

Long pages are followed by files of their own, test_docs_*.py; here are the others, and the reader tried.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import FILES, PAGES, Block, blocks_of, commands_of, follow, pages_of, prepare, reading


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_of(__file__))
def test_page_does_what_it_says(page: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    follow(page, tmp_path, subtests)


def test_every_page_is_followed_by_one_file() -> None:
    files = sorted(Path(__file__).parent.glob("test_docs*.py"))
    assert {file.stem for file in files} == {"test_docs", *FILES}
    assert sorted(page for file in files for page in pages_of(str(file))) == sorted(PAGES)


# ------------------------------------------------------------ the tester tested

PAGE = """\
Words.

<!-- test: replace "--minutes 60" with "--epochs 1" -->
```bash
train --minutes 60
```

- in a list:

  ```console
  $ echo one \\
      two
  one two
  $ false
  ```

<!-- a remark -->
<!-- test: skip needs a GPU -->

```python
train()
```

<!-- test: skip this belongs to no block -->
Words between.

```text
not run
```
"""


def test_blocks_are_found_in_order_with_their_comments() -> None:
    assert blocks_of(PAGE) == [
        Block(4, "bash", "train --epochs 1\n"),
        Block(10, "console", "$ echo one \\\n    two\none two\n$ false\n"),
        Block(20, "python", "train()\n", skip="needs a GPU"),
        Block(27, "text", "not run\n"),
    ]
    assert commands_of(blocks_of(PAGE)[1].code) == "echo one \\\n    two\nfalse"


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("```\nls\n```\n", "line 1: say bash"),
        ("\n```sh\nls\n```\n", "line 2: say bash"),
        ("<!-- test: skip -->\n```bash\nls\n```\n", "can't follow"),
        ("<!-- test: hope -->\n```bash\nls\n```\n", "can't follow"),
        ('<!-- test: replace "rm" with "ls" -->\n```bash\nls\n```\n', "no 'rm' to replace"),
    ],
)
def test_a_block_that_would_slip_through_is_an_error(page: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        blocks_of(page)


def test_reader_runs_commands_and_python_in_one_folder(tmp_path: Path) -> None:
    prepare(tmp_path)
    with reading(tmp_path) as reader:
        reader.follow(Block(1, "bash", "find pictures -name '*.jpg' | wc -l > count\n"))
        reader.follow(Block(2, "python", "count = int(open('count').read())"))
        reader.follow(Block(3, "python", "assert count == 60; print('seen')"))
        reader.follow(Block(4, "console", "$ test -f count\nwhatever it printed\n"))


@pytest.mark.parametrize(
    ("language", "code", "message"),
    [
        ("bash", "false\ntrue\n", "ended with 1"),
        ("bash", "cat nothing | cat\n", "No such file"),
        ("bash", "sleep 30\n", "not done after"),
        ("python", "assert 1 == 2", "AssertionError"),
        ("python", "raise SystemExit(3)", "SystemExit"),
        ("python", "import os; os._exit(0)", "the interpreter ended"),
        ("python", "import time; time.sleep(30)", "was ended after"),
    ],
)
def test_reader_fails_where_the_page_is_wrong(language: str, code: str, message: str, tmp_path: Path) -> None:
    with reading(tmp_path) as reader, pytest.raises(pytest.fail.Exception, match=message):
        reader.follow(Block(1, language, code), limit=2 if "sleep" in code else 20)

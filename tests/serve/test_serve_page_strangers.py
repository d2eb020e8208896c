"""What a page of another site tries, in headless Chromium."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browsing import needs_chromium, playwright
from serving import made_collection, served

from instdisc.jobs.label import hand_labels

pytestmark = needs_chromium


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_collection(tmp_path)[1]


class Stranger(http.server.BaseHTTPRequestHandler):
    """Another site, whose page tries to read and to write."""

    target = ""

    def do_GET(self) -> None:
        program = f"""<!doctype html><title>stranger</title><script>
        const found = [];
        const end = () => {{ document.title = JSON.stringify(found); }};
        const picture = new Image();
        picture.onload = () => {{ found.push('picture'); step(); }};
        picture.onerror = step;
        picture.src = '{self.target}/pictures/0';
        async function step() {{
            try {{ found.push((await (await fetch('{self.target}/api/collection')).json()).name); }} catch {{}}
            try {{ const answer = await fetch('{self.target}/api/labels', {{method: 'POST', mode: 'no-cors',
                headers: {{'content-type': 'text/plain'}}, body: '{{"rows":[0],"label":"stolen"}}'}}); }} catch {{}}
            try {{ await fetch('{self.target}/api/uploads', {{method: 'POST', mode: 'no-cors',
                body: new Uint8Array(100)}}); }} catch {{}}
            const line = new WebSocket('{self.target}/api/status'.replace('http', 'ws'));
            await new Promise((go) => {{ line.onopen = () => {{ found.push('socket'); go(); }}; line.onerror = go; }});
            const program = document.createElement('script');
            await new Promise((go) => {{
                program.onload = () => {{ found.push('program'); go(); }};
                program.onerror = go;
                program.src = '{self.target}/dom.js';
                document.body.append(program);
            }});
            const form = Object.assign(document.createElement('form'), {{action: '{self.target}/api/labels',
                method: 'POST', enctype: 'text/plain', target: 'below'}});
            form.append(Object.assign(document.createElement('input'),
                {{name: '{{"rows":[0],"label":"', value: 'stolen"}}'}}));
            const below = document.createElement('iframe');
            below.name = 'below';
            document.body.append(below, form);
            await new Promise((go) => {{ below.onload = go; form.submit(); }});
            const frame = document.createElement('iframe');
            frame.src = '{self.target}/';
            frame.onload = () => {{ try {{ found.push(frame.contentDocument.title); }} catch {{}} end(); }};
            document.body.append(frame);
        }}
        </script><body>"""
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(program.encode())

    def log_message(self, format: str, *values: object) -> None:
        pass


@contextmanager
def strangers_site(target: str) -> Iterator[int]:
    Stranger.target = target
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield site.server_port
        finally:
            site.shutdown()
            thread.join()


@pytest.mark.fault("no Origin check")
@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])
def test_a_page_of_another_site_reads_and_writes_nothing(browser: playwright.Browser, run: Path, name: str) -> None:
    """Also not from another port of the same name, to which a browser sends the cookie with the token."""
    with served(run, token="right") as client, strangers_site(client.address) as port:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{client.address}/?token=right#/")
        page.wait_for_selector(".scroll .cell img")
        page.goto("about:blank")
        answers: list[tuple[str, str, int]] = []
        page.on("response", lambda it: answers.append((it.request.method, it.url, it.status)))
        page.goto(f"http://{name}:{port}/")
        page.wait_for_function("() => document.title.startsWith('[')", timeout=120_000)
        assert page.title() in ("[]", "[null]", '[""]')
        assert hand_labels(run) == {}
        own = [answer for answer in answers if answer[1].startswith(client.address)]
        assert {method for method, _, _ in own} == {"GET", "POST"} and {status for *_, status in own} == {403}, own
        context.close()

"""HTML pages that stand alone: one tree of elements, which escapes all text, and a policy that forbids the network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

LIBRARY = "niivue-0.69.0.js.gz"
LIBRARY_LICENCES = "niivue-0.69.0.licences.txt"
GENERATOR = "ucseg"

Content = Element | str


def page_file(name: str) -> Path:
    """One of the files that pages are made of."""
    return Path(str(resources.files("ucseg_runtime.report"))) / "static" / name


def page_text(name: str) -> str:
    """Text of such a file, unpacked where it is compressed."""
    content = page_file(name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


def node(tag: str, *content: Content, **attributes: str) -> Element:
    """An element; its text and its attributes are escaped when the page is written.

    Args:
        tag: Its name.
        content: What is in it, in order.
        attributes: ``_`` stands for ``-``; one at the end is left out, so that Python's own words can be used.
    """
    element = Element(tag, {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()})
    last: Element | None = None
    for item in content:
        if not isinstance(item, str):
            element.append(item)
            last = item
        elif last is None:
            element.text = (element.text or "") + item
        else:
            last.tail = (last.tail or "") + item
    return element


def table(caption: str, header: Sequence[Content], rows: Iterable[Sequence[Element]]) -> Element:
    """A table whose first cells head their rows, in a box of its own that can be scrolled where it is too wide."""
    head = node("thead", node("tr", *(node("th", item, scope="col") for item in header)))
    body = node("tbody", *(node("tr", *row) for row in rows))
    content = node("table", node("caption", caption), head, body)
    return node("div", content, class_="wide", role="region", aria_label=caption, tabindex="0")


def facts(items: Iterable[tuple[str, Content]]) -> Element:
    """A list of names and values."""
    return node("dl", *(node("div", node("dt", name), node("dd", value)) for name, value in items))


def number(value: object, digits: int) -> Element:
    """A number as people read it, which holds the whole one for machines; a dash where there is none."""
    if not isinstance(value, int | float) or value != value:
        return node("span", "–")
    return node("data", f"{value:.{digits}f}", value=json.dumps(value))


def picture(png: bytes, description: str, **attributes: str) -> Element:
    """A picture that is part of the page."""
    return node("img", src=f"data:image/png;base64,{base64.b64encode(png).decode()}", alt=description, **attributes)


def data_block(name: str, value: object) -> Element:
    """What a script of the page reads as JSON; nothing in it can end the element."""
    text = json.dumps(value, sort_keys=True, allow_nan=False).replace("<", "\\u003c")
    return node("script", text, type="application/json", id=name)


def document(title: str, body: Sequence[Element], style: str, script: str = "") -> bytes:
    """A whole page.

    Args:
        title: Of the window.
        body: Everything that is shown.
        style: The one style sheet.
        script: The one script, a module; it runs last. No other can run, and nothing may be fetched.

    Returns:
        UTF-8; the same for the same arguments.
    """
    script = script.replace("</script", "<\\/script")
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", **{"http-equiv": "Content-Security-Policy"}, content=_policy(style, script)),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="generator", content=GENERATOR),
        node("title", title),
        node("style", style),
    )
    scripts = [node("script", script, type="module")] if script else []
    page = node("html", head, node("body", *body, *scripts), lang="en")
    text = tostring(page, encoding="unicode", method="html")
    return f"<!DOCTYPE html>\n{text}\n".encode("utf-8", "replace")


def _policy(style: str, script: str) -> str:
    """Style sheet and script by their digests; pictures from the page itself; nothing else.

    Source: Content Security Policy Level 3, W3C.
    """
    allowed = ["default-src 'none'", f"style-src {_digest(style)}", "img-src data:"]
    if script:
        allowed += [f"script-src {_digest(script)}"]
    return "; ".join([*allowed, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

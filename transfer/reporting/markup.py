"""HTML by small functions: everything that is not marked as HTML is escaped."""

from collections.abc import Iterable, Sequence
from html import escape


class Html(str):
    """A piece of finished markup; every other string is text from a file and is escaped."""

    __slots__ = ()


def markup(value: object) -> Html:
    """Return `value` as markup, escaped unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object], separator: str = "\n") -> Html:
    """Return the parts one after the other."""
    return Html(separator.join(markup(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Return an element; ``class_`` stands for the attribute ``class``."""
    written = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{join(content, '')}</{name}>")


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table that scrolls sideways where the screen is narrow."""
    top = tag("tr", *(tag("th", cell) for cell in head))
    body = [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body)), class_="scroll")


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """Return a table of names and values, without a head."""
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows]
    return tag("div", tag("table", tag("tbody", *body), class_="pairs"), class_="scroll")


def section(anchor: str, title: str, *content: object) -> Html:
    """Return a section with its heading."""
    return tag("section", tag("h2", title), join(content), id=anchor)


def page(title: str, headline: str, note: str, sections: Sequence[Html], script: str) -> str:
    """Return the whole document; `script` is plotly's, which the charts in `sections` call."""
    # The policy lets a browser enforce what the page promises: nothing is loaded from anywhere.
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
    header = tag("header", tag("h1", title), tag("p", headline, class_="headline"), tag("p", note))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light">',
            f"<title>{markup(title)}</title>",
            f"<style>{_STYLE}</style>",
            f"<script>{script}</script>",
            "</head>",
            "<body>",
            f"<main>{header}\n{join(sections)}</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


_STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #e2e6ec; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
header { margin-bottom: 28px; }
header p { color: var(--soft); margin: 6px 0; }
h1 { font-size: 15px; font-weight: 600; letter-spacing: .02em; color: var(--accent); margin: 0;
  overflow-wrap: anywhere; }
header p.headline { font-size: 23px; line-height: 1.35; font-weight: 600; color: var(--ink); overflow-wrap: anywhere; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 26px; margin-bottom: 20px; }
h2 { font-size: 20px; margin: 0 0 8px; overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 26px 0 4px; overflow-wrap: anywhere; }
section p { color: var(--soft); margin: 4px 0 12px; max-width: 100ch; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
table.pairs { width: auto; min-width: 50%; }
table.pairs th { color: var(--soft); font-weight: 500; white-space: nowrap; padding-right: 32px; }
pre { background: #f5f7fa; border: 1px solid var(--line); border-radius: 6px; padding: 12px 14px; overflow-x: auto;
  font: 13.5px/1.6 ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; margin: 8px 0; }
@media (max-width: 640px) { section { padding: 16px 14px; } header p.headline { font-size: 20px; } }
@media print { section { break-inside: avoid; border: 0; padding: 0; } body { background: #fff; } }
"""

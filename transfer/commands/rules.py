"""``widthwise rules``: the scaling rules and horizon rules, with what they do and where they come from."""

from dataclasses import dataclass

from widthwise.transfer.commands.options import Flag


@dataclass(frozen=True, kw_only=True)
class Rules:
    """List the scaling rules and horizon rules, with their sources."""

    json: Flag = False
    """Print one JSON document instead of tables."""

    def run(self) -> int:
        """Print the rules on standard output."""
        from widthwise.transfer.horizons import horizon_rules
        from widthwise.transfer.scaling import rules

        listed = {
            "rules": [(one.name, one.source, one.summary) for one in rules.values()],
            "horizon_rules": [(one.name, one.source, one.summary) for one in horizon_rules.values()],
        }
        if self.json:
            from json import dumps

            keys = ("name", "source", "summary")
            document = {
                title: [dict(zip(keys, row, strict=True)) for row in rows] for title, rows in listed.items()
            }
            print(dumps(document, indent=2, ensure_ascii=False))
            return 0
        from rich.console import Console
        from rich.table import Table

        for option, rows in zip(("--rule", "--horizon-rule"), listed.values(), strict=True):
            table = Table(option, "what it does", "source", show_lines=True)
            for name, source, summary in rows:
                table.add_row(name, summary, source)
            Console().print(table)
        return 0

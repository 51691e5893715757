"""``widthwise check``: does a recipe's transfer hold? Proxies at several widths, statistics, and a verdict."""

"""A target run watched against what the proxies promised: bands, how they are carried, alarms and their causes."""

"""Names of the files by which a folder is known to hold a study; nothing is imported."""

# The study itself, in SQLite, or the file that says in which database it is.
SWEEP_STUDY = ("study.db", "study.json")
GRID_STUDY = ("runs.db", "runs.json")
# All of them, and what each says that its folder holds.
STUDIES = {**dict.fromkeys(SWEEP_STUDY, "a sweep"), **dict.fromkeys(GRID_STUDY, "a check")}

"""Collects human ratings and comparisons (`douga annotate`): rubrics, a web page, a durable store, and statistics.

```
clips, pairs (items.py) ──> SURVEY (survey.py) ──> page (app.py, page/) ──> annotators
rubric (rubric.py)             │    ▲
                               ▼    │ answers, undone ones too
                           STORE (store.py, SQLite) ──> inter_annotator.py ──> results, ratings.jsonl, pairs.jsonl
```

To add a rubric, add a TOML file in `rubrics/` and its name to `rubric.BUILT_IN`. `page/annotate.js` reads the JSON of
`app.py`; change both together. Old stores must stay readable: a change of `store.TABLES` needs a new `STORE_VERSION`.
"""

"""People as judges: rubrics, who is shown what, answers kept for good, and how far annotators agree.

```
clips, pairs (items.py) ──> SURVEY (survey.py) ──> page (app.py, page/) ──> annotators
rubric (rubric.py)             │    ▲
                               ▼    │ answers, undone ones too
                           STORE (store.py, SQLite) ──> agreement.py ──> results, ratings.jsonl, pairs.jsonl
```
"""

"""Trains the model that predicts who survived, and measures it on rows it has not seen.

The model is one scikit-learn pipeline of scikit-learn's own classes, so that whoever loads it
needs no code of ours. What a passenger's companions tell (the survival rate by ticket) is learnt
inside the pipeline, hence anew in each fold, from the training rows alone: no fold knows the
answers it is judged by.
"""

import base64
import inspect
import json
import logging
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import sklearn
import skops
import skops.io
from matplotlib.figure import Figure
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OrdinalEncoder, TargetEncoder
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from synapse_assets.steps import titanic_rules as rules
from synapse_assets.steps.tracking import track

logger = logging.getLogger(__name__)

_TARGET = "survived"
_CATEGORIES = ("sex", "title", "deck", "embarked")
_NUMBERS = ("pclass", "age", "fare", "family_size", "sib_sp", "parch")
_GROUP = "ticket"
_FEATURES = (*_CATEGORIES, *_NUMBERS, _GROUP)
_IMPUTED = "age_imputed"
# The encoder keeps each ticket with the model. The historic 681 are cheap, and worth a percent;
# a table with far more of them would make a model of hundreds of megabytes.
_MAX_TICKETS = 50_000

_SEED = 42
_MAX_FOLDS = 5
# Below it, some fold or the encoder inside a fold would have to learn from a single outcome.
_MIN_ROWS_OF_EACH_OUTCOME = 4
# Five fits on more rows would change the third digit of the accuracy at most.
_MAX_CROSS_VALIDATED_ROWS = 100_000
_ROWS_WORTH_THREADS = 500_000
_CHILD_BELOW_YEARS = 14

_DPI = 90


def train(
    titanic_prepared: ds.Dataset,
    survival_model: Path,
    report: Callable[..., None],
    *,
    dataset_version: int | None = None,
    code_version: str | None = None,
) -> dict[str, dict[str, dict[str, str]]]:
    """Write the model, its fillings, metrics and card, and three plots into `survival_model`.

    All rows train the model. The scores come from stratified five-fold cross-validation over
    all rows too, up to 100,000; of a larger table, over that many rows drawn at random with the
    outcomes in proportion. A table with few rows of one outcome gets fewer folds.

    Args:
        titanic_prepared: The table that `prepare` made.
        survival_model: The empty folder to fill.
        report: Called with the scores and the plots.
        dataset_version: The version of `titanic_prepared`, to be noted with the model.
        code_version: The version of this step's code, to be noted with the model.

    Raises:
        ValueError: The table is empty, lacks a column, or has too few rows of one outcome.
    """
    table = _read_columns(titanic_prepared)
    target = table.column(_TARGET).to_numpy().astype(np.int8)
    _count_smallest_outcome(target)
    features = _build_features(table)
    with _limit_threads(min(len(target), _MAX_CROSS_VALIDATED_ROWS)):
        scores, truth, probability = _cross_validate(features, target)
    logger.info(
        "accuracy %.4f (standard deviation %.4f) in %d folds",
        scores["accuracy"],
        scores["accuracy_std"],
        scores["folds"],
    )
    with _limit_threads(len(target)):
        model = _fit_model(features, target)
    metrics = {
        **scores,
        "rows": len(target),
        "seed": _SEED,
        "features": list(features.columns),
        "target": _TARGET,
        "training_data": {"dataset": "titanic_prepared", "version": dataset_version},
        "code_version": code_version,
        "trusted_types": _save_model(model, survival_model / "model.skops"),
        "versions": _list_versions(),
    }
    _write_json(survival_model / "metrics.json", metrics)
    fillings = _learn_fillings(features, is_imputed=table.column(_IMPUTED).to_numpy())
    _write_json(survival_model / "fillings.json", fillings.to_json())
    card = survival_model / "model_card.md"
    card.write_text(_format_card(metrics), encoding="utf-8")
    _track(metrics, model, card=card)
    plots = {
        "survival_by_class_sex_age": _plot_survival(table),
        "roc": _plot_roc(truth, probability, auc=scores["roc_auc"]),
        "confusion_matrix": _plot_confusion(np.array(scores["confusion_matrix"])),
    }
    for name, figure in plots.items():
        figure.savefig(survival_model / f"{name}.png", dpi=_DPI, format="png")
    told = ("accuracy", "accuracy_std", "roc_auc", "majority_class_accuracy")
    report(
        "survival_model",
        **{name: round(scores[name], 4) for name in told},
        rows=len(target),
        rows_cross_validated=scores["rows_cross_validated"],
        **{name: _embed_picture(name, survival_model / f"{name}.png") for name in plots},
    )
    properties = {"rows": str(len(target)), "accuracy": f"{scores['accuracy']:.4f}"}
    return {"survival_model": {"model.skops": properties}}


# --- the table -----------------------------------------------------------------------------


def _read_columns(dataset: ds.Dataset) -> pa.Table:
    columns = [*_FEATURES, _TARGET, _IMPUTED]
    missing = [name for name in columns if name not in dataset.schema.names]
    if missing:
        raise ValueError(
            f"titanic_prepared lacks the column {', '.join(missing)}: materialize it again with "
            "the prepare step of the same version."
        )
    table = dataset.to_table(columns=columns)
    if table.num_rows == 0:
        raise ValueError(
            "titanic_prepared has no rows: materialize it from an arrival that has some."
        )
    return table


def _count_smallest_outcome(target: np.ndarray[Any, Any]) -> int:
    lost, saved = np.bincount(target, minlength=2)
    for outcome, other, count in ((0, 1, lost), (1, 0, saved)):
        if count == 0:
            raise ValueError(
                f"Column survived is {other} in every row of titanic_prepared: land an arrival "
                f"that also has passengers with survived {outcome}."
            )
        if count < _MIN_ROWS_OF_EACH_OUTCOME:
            raise ValueError(
                f"Column survived is {outcome} in only {count} rows of titanic_prepared: land at "
                f"least {_MIN_ROWS_OF_EACH_OUTCOME} such passengers."
            )
    return int(min(lost, saved))


def _build_features(table: pa.Table) -> pd.DataFrame:
    """Return the feature columns, without the ticket where there are too many of them."""
    names = [*_CATEGORIES, *_NUMBERS]
    # No ticket is a group of its own, not a missing value.
    tickets = pc.fill_null(table.column(_GROUP), "")
    if pc.count_distinct(tickets).as_py() <= _MAX_TICKETS:
        names.append(_GROUP)
    else:
        logger.info("more than %d tickets: the model does without them", _MAX_TICKETS)
    columns = table.set_column(table.schema.get_field_index(_GROUP), _GROUP, tickets)
    # Categories share their few strings; as text each row would have its own copies.
    features: pd.DataFrame = columns.select(names).to_pandas(strings_to_categorical=True)
    return features


def _learn_fillings(features: pd.DataFrame, *, is_imputed: np.ndarray[Any, Any]) -> rules.Fillings:
    """Return what stands for a missing value of a passenger who is to be scored.

    For the rows of one arrival it is what `prepare` filled: a median stays the same when copies
    of it are added, so that only ages, which are filled group by group, have to be told apart.
    """
    known = features[~is_imputed.astype(bool)]
    by_both = _find_medians(known.groupby(["title", "pclass"], observed=True)["age"])
    by_title = _find_medians(known.groupby("title", observed=True)["age"])
    by_class = _find_medians(features.groupby("pclass", observed=True)["fare"])
    of_all = _find_medians(known["age"]) if len(known) else rules.AGE_WHERE_NONE_IS_KNOWN
    ports = features["embarked"].value_counts()
    return rules.Fillings(
        age_by_title_and_class={
            (title, int(pclass)): _round_age(age) for (title, pclass), age in by_both.items()
        },
        age_by_title={title: _round_age(age) for title, age in by_title.items()},
        age=_round_age(of_all),
        fare_by_class={int(pclass): float(fare) for pclass, fare in by_class.items()},
        fare=float(_find_medians(features["fare"])),
        port=max(rules.PORTS, key=lambda port: int(ports.get(port, 0))),
    )


def _find_medians(values: Any) -> Any:
    return values.quantile(0.5, interpolation="lower")


def _round_age(age: float) -> float:
    # As Spark rounds: halves up, by the digits that the number is written with.
    return float(Decimal(repr(float(age))).quantize(Decimal("0.01"), ROUND_HALF_UP))


def _limit_threads(rows: int) -> AbstractContextManager[Any]:
    # The trees' threads spin while they wait for each other; on a busy machine that makes small
    # work a hundred times slower.
    return threadpool_limits(1) if rows < _ROWS_WORTH_THREADS else nullcontext()


# --- the model -----------------------------------------------------------------------------


def _fit_model(features: pd.DataFrame, target: np.ndarray[Any, Any]) -> Pipeline:
    """Return the model trained on these rows."""
    encoders: list[tuple[str, Any, list[str]]] = [
        (
            "categories",
            OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
            list(_CATEGORIES),
        ),
        ("numbers", "passthrough", list(_NUMBERS)),
    ]
    if _GROUP in features.columns:
        folds = min(_MAX_FOLDS, int(np.bincount(target).min()))
        encoders.append(("group", _build_group_encoder(folds=folds), [_GROUP]))
    boost = HistGradientBoostingClassifier(
        max_iter=60,
        learning_rate=0.1,
        max_leaf_nodes=8,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=_SEED,
    )
    model = Pipeline([("encode", ColumnTransformer(encoders)), ("boost", boost)])
    return model.fit(features, target)


def _build_group_encoder(*, folds: int) -> TargetEncoder:
    # scikit-learn 1.9 deprecated the encoder's seed for a seeded splitter in its place.
    if "deprecated" in str(inspect.signature(TargetEncoder).parameters["random_state"].default):
        splitter = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
        return TargetEncoder(target_type="binary", cv=splitter)
    return TargetEncoder(target_type="binary", cv=folds, random_state=_SEED)


def _cross_validate(
    features: pd.DataFrame, target: np.ndarray[Any, Any]
) -> tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the scores, the true outcomes and the held-out probabilities, row by row."""
    if len(target) > _MAX_CROSS_VALIDATED_ROWS:
        chosen, _ = train_test_split(
            np.arange(len(target)),
            train_size=_MAX_CROSS_VALIDATED_ROWS,
            stratify=target,
            random_state=_SEED,
        )
        features, target = features.iloc[chosen], target[chosen]
    smallest = _count_smallest_outcome(target)
    folds = min(_MAX_FOLDS, smallest // 2)
    probability = np.zeros(len(target))
    accuracies: list[float] = []
    splits = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    for number, (seen, held_out) in enumerate(splits.split(features, target), start=1):
        model = _fit_model(features.iloc[seen], target[seen])
        probability[held_out] = model.predict_proba(features.iloc[held_out])[:, 1]
        accuracies.append(float(np.mean((probability[held_out] > 0.5) == target[held_out])))
        logger.info("fold %d of %d: accuracy %.4f", number, folds, accuracies[-1])
    scores = {
        "accuracy": float(np.mean(accuracies)),
        "accuracy_std": float(np.std(accuracies)),
        "accuracy_of_folds": accuracies,
        "roc_auc": float(roc_auc_score(target, probability)),
        "log_loss": float(log_loss(target, probability)),
        "majority_class_accuracy": float(np.bincount(target).max() / len(target)),
        "confusion_matrix": confusion_matrix(target, probability > 0.5).tolist(),
        "folds": folds,
        "rows_cross_validated": len(target),
    }
    return scores, target, probability


# --- the files -----------------------------------------------------------------------------


def _save_model(model: Pipeline, path: Path) -> list[str]:
    """Write the model and return the types that skops asks the loader to trust."""
    skops.io.dump(model, path)
    types: list[str] = skops.io.get_untrusted_types(file=path)
    foreign = [name for name in types if not name.startswith("sklearn.")]
    if foreign:
        raise RuntimeError(f"The model holds types from outside scikit-learn: {foreign}")
    skops.io.load(path, trusted=types)
    return types


def _list_versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "scikit-learn": sklearn.__version__,
        "skops": skops.__version__,
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "pyarrow": pa.__version__,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _format_card(m: dict[str, Any]) -> str:
    """Return the model card of a model with these metrics."""
    is_sampled = m["rows_cross_validated"] < m["rows"]
    sampled = (
        f"{m['rows_cross_validated']:,} of them, drawn at random with the outcomes in proportion"
        if is_sampled
        else "all of them"
    )
    group = (
        "`ticket` enters as the smoothed survival rate of the passengers who share it, learnt "
        "within each fold from its training rows alone."
        if _GROUP in m["features"]
        else f"`ticket` is left out: the table has more than {_MAX_TICKETS:,} of them."
    )
    data, code = (
        "version not given" if version is None else f"version {version}"
        for version in (m["training_data"]["version"], m["code_version"])
    )
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return f"""# survival_model

Predicts whether a passenger of the Titanic survived (column `survived`).

| held-out score | value |
| --- | --- |
| accuracy | {m["accuracy"]:.4f} (standard deviation over the folds {m["accuracy_std"]:.4f}) |
| accuracy of always naming the larger class | {m["majority_class_accuracy"]:.4f} |
| area under the ROC curve | {m["roc_auc"]:.4f} |
| log loss | {m["log_loss"]:.4f} |

- Trained on {m["rows"]:,} rows of `titanic_prepared`, {data}.
- Code of the training step: {code}.
- Scored by stratified {m["folds"]}-fold cross-validation (shuffled, seed {_SEED}) over {sampled}.
- Model: scikit-learn's HistGradientBoostingClassifier in a Pipeline with its encoders.
- Features: {", ".join(f"`{name}`" for name in m["features"])}.
- {group}
- Ages, fares and ports that were missing had been filled by the prepare step, from all rows of an
  arrival but never from `survived`. `fillings.json` has what stands for them when the model is
  used.
- Made with {versions}.

## Use it

`synapse-assets predict passengers.csv` scores a file with the columns of Titanic.csv. Or in Python:

```python
import skops.io

model = skops.io.load("model.skops", trusted={json.dumps(m["trusted_types"])})
probability = model.predict_proba(rows_of_titanic_prepared)[:, 1]
```

## Limits

The passengers of one ship in 1912 are no basis for a decision about anyone today: the model shows
how the pipeline works. `sex` and `pclass` are its strongest features.
"""


def _track(m: dict[str, Any], model: Pipeline, *, card: Path) -> None:
    boost = model.named_steps["boost"]
    of_boost = ("max_iter", "learning_rate", "max_leaf_nodes", "l2_regularization")
    scores = ("accuracy", "accuracy_std", "roc_auc", "log_loss", "majority_class_accuracy")
    track(
        parameters={
            "model": type(boost).__name__,
            **{name: getattr(boost, name) for name in of_boost},
            **{name: m[name] for name in ("seed", "folds", "rows", "rows_cross_validated")},
            "features": ", ".join(m["features"]),
        },
        metrics={name: m[name] for name in scores},
        tags={
            "dataset": m["training_data"]["dataset"],
            "dataset_version": m["training_data"]["version"],
            "code_version": m["code_version"],
        },
        artifact=card,
    )


def _embed_picture(name: str, path: Path) -> dict[str, str]:
    data = base64.b64encode(path.read_bytes()).decode()
    return {"raw_value": f"![{name}](data:image/png;base64,{data})", "type": "md"}


# --- the plots -----------------------------------------------------------------------------


def _start_figure(width: float, height: float, title: str) -> tuple[Figure, Any]:
    # Figure instead of pyplot: no global state, no search for a display, a faster import.
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    return figure, axes


def _plot_survival(table: pa.Table) -> Figure:
    """Draw the share who survived, by class, sex and age group."""
    is_child = pc.less(table.column("age"), _CHILD_BELOW_YEARS)
    groups = (
        table.select(["pclass", "sex", _TARGET])
        .append_column("is_child", is_child)
        .group_by(["pclass", "sex", "is_child"])
        .aggregate([(_TARGET, "mean"), (_TARGET, "count")])
        .to_pylist()
    )
    figure, axes = _start_figure(6.4, 4.0, "Who survived, by class, sex and age")
    kinds = {
        ("female", False): ("women", "#d1550f"),
        ("female", True): ("girls", "#f2b48c"),
        ("male", False): ("men", "#0b6bcb"),
        ("male", True): ("boys", "#8fc1ee"),
    }
    width = 0.2
    for at, ((sex, child), (label, color)) in enumerate(kinds.items()):
        age = f"{'<' if child else '≥'} {_CHILD_BELOW_YEARS}"
        axes.bar(0, 0, color=color, label=f"{label} ({age})")
        for row in groups:
            if (row["sex"], row["is_child"]) != (sex, child):
                continue
            x = row["pclass"] + (at - 1.5) * width
            share, count = row[f"{_TARGET}_mean"], row[f"{_TARGET}_count"]
            people = f"{count:,}" if count < 10_000 else f"{count / 1000:,.0f}k"
            axes.bar(x, share, width * 0.92, color=color)
            text = f"{share:.0%}\nof {people}"
            axes.text(x, share + 0.015, text, ha="center", va="bottom", fontsize=6.5)
    axes.set_xlim(0.5, 3.5)
    axes.set_ylim(0, 1.18)
    axes.set_xticks([1, 2, 3], ["1st class", "2nd class", "3rd class"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.legend(ncols=4, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    return figure


def _plot_roc(
    truth: np.ndarray[Any, Any], probability: np.ndarray[Any, Any], *, auc: float
) -> Figure:
    false_rate, true_rate, _ = roc_curve(truth, probability)
    figure, axes = _start_figure(4.6, 4.2, f"ROC of held-out rows, area {auc:.3f}")
    axes.plot([0, 1], [0, 1], color="#8c959f", linewidth=1, linestyle="--", label="guessing")
    axes.plot(false_rate, true_rate, color="#0b6bcb", linewidth=2, label="model")
    axes.set_xlabel("lost, but predicted to survive", fontsize=9)
    axes.set_ylabel("survived, and predicted to", fontsize=9)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


def _plot_confusion(counts: np.ndarray[Any, Any]) -> Figure:
    share = counts / counts.sum(axis=1, keepdims=True)
    figure, axes = _start_figure(4.6, 4.0, "Held-out rows, predicted and true")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        text = f"{count:,}\n{share[row, column]:.0%}"
        color = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=13, color=color)
    axes.set_xticks([0, 1], ["predicted lost", "predicted saved"])
    axes.set_yticks([0, 1], ["lost", "saved"])
    return figure

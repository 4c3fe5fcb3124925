"""A run folder as train_gpt writes it: metrics.jsonl and run_config.json, for the scripts that show runs."""
import json
import math
import os
import statistics

# Keys that every run has for itself.
OWN_KEYS = ("run.name", "run.dir", "run.note")
# Parts of the model by kind of tensor; all others are gains of norms.
PARTS = {"embed_tokens": "embedding", "lm_head": "head", **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "attention"),
         **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "MLP")}


class RunError(Exception):
    """Something the user can mend; printed without a traceback."""


def number_or_nan(value):
    """Numbers that were not finite are null in metrics.jsonl; they leave a gap in the curve."""
    return math.nan if value is None else float(value)


def kind_of(tensor):
    """q_proj of model.layers.0.self_attn.q_proj.weight."""
    return tensor.removesuffix(".weight").rpartition(".")[2]


def clock(seconds):
    """12:34 or 1:02:34."""
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def counted(value):
    """885888 -> 886k."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def in_bytes(value):
    """In binary units, as train_gpt prints them."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def parse_metrics(text, path):
    """The lines as objects with a type. The last may be torn: the run may be writing it just now."""
    found, lines = [], text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            parsed = json.loads(line)
            check_line(parsed)
            found.append(parsed)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) or text.endswith("\n"):
                raise RunError(f"'{path}' line {number}: not a metrics line ({error!r})") from None
    return found


def check_line(line):
    """Raises where a line lacks what every reader needs."""
    kind = line["type"]
    if kind in ("train", "val"):
        line["step"] = int(line["step"])
        number_or_nan(line["loss"])
    if kind == "train":
        number_or_nan(line["lr"])
        str(line["phase"])


def read_metrics(path):
    """The lines of a run that has begun."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = parse_metrics(file.read(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}; "
                       "give the folder of a run (run.dir)") from None
    if not any(line["type"] in ("train", "val") for line in lines):
        raise RunError(f"'{path}' has no train or val lines yet")
    return lines


def read_config(path):
    """None where there is no configuration."""
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read '{path}': {error}") from None
    if not isinstance(config, dict):
        raise RunError(f"cannot read '{path}': not an object")
    return config


def flattened(value, prefix=""):
    """{"a.b": value}; lists are values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {key: leaf for name, part in value.items()
            for key, leaf in flattened(part, f"{prefix}.{name}" if prefix else name).items()}


class Run:
    """The lines and the configuration of a run folder."""

    def __init__(self, folder):
        self.folder = folder
        self.lines = read_metrics(os.path.join(folder, "metrics.jsonl"))
        self.config = read_config(os.path.join(folder, "run_config.json"))
        self.name = self.get("run.name") or os.path.basename(os.path.abspath(folder))
        self.target = self.get("schedule.warmup.target_loss")
        self.train, self.val = self.of_type("train"), self.of_type("val")
        self.spikes, self.left_out = self.of_type("spike"), self.of_type("nonfinite")

    def of_type(self, kind):
        return [line for line in self.lines if line["type"] == kind]

    def get(self, path, default=None):
        """A value of the configuration, such as get("run.steps")."""
        value = self.config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return default if value is None else value

    def curve(self, key):
        """Updates and values of a number of the train lines, where there is one."""
        points = [(line["step"], number_or_nan(line[key])) for line in self.train if key in line]
        return [step for step, _ in points], [value for _, value in points]

    def update_norms(self):
        """{part of the model: (updates, medians)} of how far an update moved the tensors of that part."""
        curves = {}
        for line in self.of_type("update_norms"):
            values = {}
            for name, value in line["tensors"].items():
                values.setdefault(PARTS.get(kind_of(name), "gains"), []).append(number_or_nan(value))
            for part, found in values.items():
                steps, medians = curves.setdefault(part, ([], []))
                steps.append(line["step"])
                medians.append(statistics.median(found))
        return curves

    def last(self, kind):
        found = self.of_type(kind)
        return found[-1] if found else {}

    @property
    def delta_star(self):
        """Gap at which the rate peaks; None without an adaptive warm-up."""
        return self.last("schedule").get("delta_star")

    @property
    def updates(self):
        """Updates done, as far as the lines tell."""
        return max([line["step"] + 1 for line in self.train] + [line["step"] for line in self.val])

    @property
    def finished(self):
        return bool(self.lines) and self.lines[-1]["type"] == "summary"

    def tokens_of(self, updates):
        """Tokens after so many updates; None where no line tells how many an update has."""
        for line in self.train:
            if line.get("tokens"):
                return updates * line["tokens"] / (line["step"] + 1)
        return None

    def seconds(self):
        """[(updates done, seconds trained)]; updates without a line are taken to last as the next with one.
        The sum over all processes that the run had: a summary knows its own only."""
        total, before, result = 0.0, -1, []
        for line in self.train:
            milliseconds = line.get("step_ms")
            if milliseconds is not None:
                total += milliseconds / 1e3 * (line["step"] - before)
                before = line["step"]
                result.append((line["step"] + 1, total))
        return result

    def phases(self):
        """[phase, first step, end step] of each stretch of equal phase."""
        spans = []
        for line in self.train:
            if not spans or spans[-1][0] != line["phase"]:
                if spans:
                    spans[-1][2] = line["step"]
                spans.append([line["phase"], line["step"], line["step"]])
            spans[-1][2] = line["step"] + 1
        return spans


def name_apart(runs):
    """Runs of equal names are called by their folders."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = run.folder
    return runs


def differences(one, other):
    """[(key, value of one, value of other)] of two configurations, in their order."""
    a, b = flattened(one.config or {}), flattened(other.config or {})
    return [(key, a.get(key), b.get(key)) for key in dict.fromkeys([*a, *b])
            if key not in OWN_KEYS and a.get(key) != b.get(key)]

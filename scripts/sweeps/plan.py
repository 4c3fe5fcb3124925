"""Which runs a sweep has: every case with every variant with every point of their grids."""
import dataclasses
import itertools
import json
import pathlib
import re

SEED_KEYS = {'run.seed', 'data.seed'}
SWEEP_KEYS = {'name', 'note', 'config', 'set', 'grid', 'cases', 'variants', 'x'}
PART_KEYS = {'config', 'set', 'grid'}


class SweepError(Exception):
    """Something the user can mend; printed without a traceback."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass
class Part:
    """A case or a variant: a configuration (or none), values for all its runs, values to go through."""
    name: str = ''
    config: pathlib.Path = None
    set: dict = dataclasses.field(default_factory=dict)
    grid: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Sweep:
    name: str
    common: Part
    cases: list
    variants: list
    x: str = 'schedule.warmup.steps'  # the key along which results are drawn


@dataclasses.dataclass
class Run:
    name: str
    config: pathlib.Path
    settings: dict  # key -> value, in the order in which they are set
    case: str
    variant: str
    point: dict  # the grid's key(s) -> value
    seed: tuple  # values of the seeds among them


def seeds_among(keys):
    """Whether a grid's key, or list of keys, is about seeds."""
    return set(keys.split(',')) <= SEED_KEYS


def read_part(where, given, folder, allowed=frozenset(PART_KEYS)):
    if not isinstance(given, dict):
        raise SweepError(f'{where}: expected an object with {", ".join(sorted(allowed))}')
    for key in given:
        if key not in allowed:
            raise SweepError(f'{where}: unknown key "{key}"; expected {", ".join(sorted(allowed))}')
    part = Part()
    if 'config' in given:
        if not isinstance(given['config'], str):
            raise SweepError(f'{where}.config: expected the path of a configuration')
        part.config = folder / given['config']
        if not part.config.is_file():
            raise SweepError(f'{where}.config: {part.config}: no such file')
    for name, kind, what in (('set', dict, 'an object of key.path: value'),
                             ('grid', dict, 'an object of key.path: [values]')):
        if not isinstance(given.get(name, {}), kind):
            raise SweepError(f'{where}.{name}: expected {what}')
    part.set, part.grid = given.get('set', {}), given.get('grid', {})
    for key, values in part.grid.items():
        if not isinstance(values, list) or not values:
            raise SweepError(f'{where}.grid: {key}: expected a list of values')
    return part


def read_parts(where, given, folder):
    if given is None:
        return [Part()]
    if not isinstance(given, dict) or not given:
        raise SweepError(f'{where}: expected an object of name: what it is')
    parts = []
    for name, value in given.items():
        part = read_part(f'{where}.{name}', value, folder)
        part.name = name
        parts.append(part)
    return parts


def read_sweep(path, sets=(), grids=(), name=None):
    """A sweep from its JSON file; --set and --grid of the command line come on top."""
    try:
        given = json.loads(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise SweepError(f'{path}: {error.strerror}') from None
    except ValueError as error:
        raise SweepError(f'{path}: not JSON: {error}') from None
    return make_sweep(given, str(path), path.parent, sets, grids, name or path.stem)


def command_line_sweep(config, sets, grids, name=None):
    return make_sweep({'config': str(config)}, 'command line', pathlib.Path(), sets, grids, name or config.stem)


def make_sweep(given, source, folder, sets, grids, name):
    common = read_part(source, {key: value for key, value in given.items() if key in PART_KEYS}
                       if isinstance(given, dict) else given, folder)
    for key in given:
        if key not in SWEEP_KEYS:
            raise SweepError(f'{source}: unknown key "{key}"; expected {", ".join(sorted(SWEEP_KEYS))}')
    for text in sets:
        key, value = split(text, '--set', 'KEY=VALUE')
        common.set[key] = parse_value(value)
    for text in grids:
        key, values = split(text, '--grid', 'KEY=VALUE,...')
        common.grid[key] = parse_values(values)
    sweep = Sweep(given.get('name', name), common, read_parts(f'{source}: cases', given.get('cases'), folder),
                  read_parts(f'{source}: variants', given.get('variants'), folder))
    sweep.x = given.get('x', sweep.x)
    return sweep


def split(text, option, form):
    key, equals, value = text.partition('=')
    if not equals or not key or not value:
        raise SweepError(f'{option} {text}: expected {form}')
    return key, value


def parse_value(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_values(text):
    """0.1,0.2 or a,b or a JSON list."""
    value = parse_value(text)
    return value if isinstance(value, list) else [parse_value(part) for part in text.split(',')]


def label(key, value):
    """A part of a run's name: steps25, muon."""
    short = 'seed' if seeds_among(key) else key.split(',')[0].rsplit('.', 1)[-1]
    return file_name(value if isinstance(value, str) else short + json.dumps(value))


def file_name(text):
    return re.sub(r'[^A-Za-z0-9._+-]+', '_', text).strip('_')


def plan_runs(sweep):
    """All runs, cases outermost. A variant's values come after a case's, the grid's last."""
    runs = []
    for case, variant in itertools.product(sweep.cases, sweep.variants):
        grid = {**sweep.common.grid, **case.grid, **variant.grid}
        config = variant.config or case.config or sweep.common.config
        if config is None:
            raise SweepError(f'{sweep.name}: no configuration: give "config" to the sweep or to each case')
        fixed = {**sweep.common.set, **case.set, **variant.set}
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values))
            settings = dict(fixed)
            for keys, value in point.items():
                settings.update(dict.fromkeys(keys.split(','), value))
            parts = [file_name(case.name), file_name(variant.name), *itertools.starmap(label, point.items())]
            name = '-'.join(filter(None, parts))
            seed = tuple(value for keys, value in point.items() if seeds_among(keys))
            others = {keys: value for keys, value in point.items() if not seeds_among(keys)}
            runs.append(Run(name or 'run', config, settings, case.name, variant.name, others, seed))
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise SweepError(f'{sweep.name}: two runs would be named "{name}": name the variants, or choose '
                             'values whose texts differ')
    return runs

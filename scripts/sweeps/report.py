"""What came out of a sweep: rows from run folders, a table, and pictures."""
import dataclasses
import json
import statistics

from plot_run import RUN_COLORS, PlotError, save_figure, style
from run_folder import RunError, parse_metrics
from .plan import SweepError

def read_metrics(folder):
    """The lines of a run; none where it has not begun."""
    path = folder / 'metrics.jsonl'
    try:
        return parse_metrics(path.read_text(encoding='utf-8'), path)
    except FileNotFoundError:
        return []
    except RunError as error:
        raise SweepError(str(error), 1) from None


def is_finished(folder):
    lines = read_metrics(folder)
    return bool(lines) and lines[-1].get('type') == 'summary'


def read_run(folder):
    """Result of a run: val_loss is None when it is not finished; warmup_end is the first update after the
    warm-up, None when there is none."""
    lines = read_metrics(folder)
    train = [line for line in lines if line['type'] == 'train']
    later = [line['step'] for line in train if line['phase'] != 'warmup']
    summary = lines[-1] if lines and lines[-1]['type'] == 'summary' else {}
    curve = next((line for line in lines if line['type'] == 'schedule'), {})
    return {'val_loss': summary.get('val_loss'), 'warmup_end': later[0] if later else None,
            'updates': len(train), 'seconds': summary.get('seconds'),
            'first_loss': train[0]['loss'] if train else None, 'delta_star': curve.get('delta_star')}


def warmup_rates(folder):
    """The rates of a run's warm-up and, last, that of the update after it: what schedule.warmup.rates takes."""
    rates, lines = [], read_metrics(folder)
    if not lines:
        raise SweepError(f'{folder}: no metrics.jsonl in it; give the folder of a run', 1)
    for line in lines:
        if line['type'] != 'train':
            continue
        if line['step'] != len(rates):
            raise SweepError(f'{folder}: the rate of update {len(rates)} is not in metrics.jsonl; train it with '
                             'log.every = 1', 1)
        rates.append(line['lr'])
        if line['phase'] != 'warmup':
            return rates
    raise SweepError(f'{folder}: its warm-up has not ended', 1)


def last_words(log):
    """The end of a run's log, for people."""
    try:
        lines = [line for line in log.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    except OSError:
        return 'no log'
    errors = [line for line in lines if line.startswith('train_gpt: ')]
    return (errors or lines or ['an empty log'])[-1]


def collect(runs, folder):
    """A row for each run, in order."""
    return [{'name': run.name, 'case': run.case, 'variant': run.variant, **{'point': run.point}, 'seed': list(run.seed),
             **read_run(folder / run.name)} for run in runs]


@dataclasses.dataclass
class Group:
    """Runs that differ in their seeds alone."""
    case: str
    variant: str
    point: dict
    rows: list

    @property
    def losses(self):
        return [row['val_loss'] for row in self.rows if row['val_loss'] is not None]

    @property
    def mean(self):
        return statistics.fmean(self.losses) if self.losses else None

    @property
    def warmup_end(self):
        ends = [row['warmup_end'] for row in self.rows if row['warmup_end'] is not None]
        return statistics.fmean(ends) if ends else None


def grouped(rows):
    groups = {}
    for row in rows:
        key = json.dumps([row['case'], row['variant'], row['point']])
        groups.setdefault(key, Group(row['case'], row['variant'], row['point'], [])).rows.append(row)
    return list(groups.values())


def shown(point):
    return ' '.join(f'{keys.split(",")[0].rsplit(".", 1)[-1]}={value if isinstance(value, str) else json.dumps(value)}'
                    for keys, value in point.items())


def table(groups):
    """Mean and spread over seeds; * marks the best mean of a case."""
    best = {}
    for group in groups:
        if group.mean is not None:
            best[group.case] = min(best.get(group.case, group.mean), group.mean)
    names = [' '.join(filter(None, [group.case, group.variant, shown(group.point)])) or 'run' for group in groups]
    width = max(map(len, names))
    lines = [f'{"":<{width}}  runs   val loss    lowest   highest  warm-up ends']
    for name, group in zip(names, groups):
        line = f'{name:<{width}}  {len(group.losses):d}/{len(group.rows):d}'
        if group.mean is not None:
            mark = '*' if group.mean == best[group.case] else ' '
            line += f'  {group.mean:9.4f}{mark}{min(group.losses):9.4f} {max(group.losses):9.4f}'
            line += f'  {group.warmup_end:12.1f}' if group.warmup_end is not None else ''
        lines.append(line.rstrip())
    return '\n'.join(lines) + '\n'


def write(sweep, rows, folder):
    (folder / 'table.txt').write_text(table(grouped(rows)), encoding='utf-8')
    text = ',\n'.join(json.dumps(row) for row in rows)
    (folder / 'results.json').write_text(
        f'{{"sweep": {json.dumps(sweep.name)}, "x": {json.dumps(sweep.x)}, "runs": [\n{text}\n]}}\n', encoding='utf-8')


def draw(sweep, rows, folder):
    """Writes the pictures and returns their paths; says so when there is nothing to draw with."""
    if not any(row['val_loss'] is not None for row in rows):
        return []
    try:
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
    except ImportError as error:
        print(f'no pictures: matplotlib is needed ({error}): install python3-matplotlib')
        return []
    style(pyplot)
    try:
        draw_losses(pyplot, grouped(rows), sweep.x, folder / 'val_loss.png')
        draw_rates(pyplot, grouped(rows), folder, folder / 'lr.png')
    except PlotError as error:
        raise SweepError(str(error), 1) from None
    return [folder / 'val_loss.png', folder / 'lr.png']


def panels(pyplot, groups):
    """One panel for each case."""
    cases = list(dict.fromkeys(group.case for group in groups))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(1.2 + 4.2 * len(cases), 4.2), squeeze=False,
                                   constrained_layout=True)
    for axis, case in zip(axes[0], cases):
        axis.set_title(case, fontweight='bold')
    return figure, dict(zip(cases, axes[0]))


def curve_key(group, x):
    """What the groups of one curve have in common."""
    rest = {keys: value for keys, value in group.point.items() if keys != x}
    return ' '.join(filter(None, [group.variant, shown(rest)])) or 'runs'


def draw_losses(pyplot, groups, x, path):
    """Validation loss against x, where a group has it; the others are lines with their spread over seeds,
    and a mark where their warm-up ended."""
    figure, axes = panels(pyplot, groups)
    for case, axis in axes.items():
        curves = {}
        for group in groups:
            if group.case == case and group.losses:
                curves.setdefault((x in group.point, curve_key(group, x)), []).append(group)
        marks = all(isinstance(g.point[x], (int, float)) for (has, _), gs in curves.items() if has for g in gs)
        for color, ((has_x, name), members) in zip(RUN_COLORS * 9, sorted(curves.items(), key=lambda c: not c[0][0])):
            means = [group.mean for group in members]
            if has_x:
                at = [group.point[x] if marks else str(group.point[x]) for group in members]
                spread = [[mean - min(group.losses) for mean, group in zip(means, members)],
                          [max(group.losses) - mean for mean, group in zip(means, members)]]
                axis.errorbar(at, means, yerr=spread, color=color, marker='o', markersize=4, capsize=3, label=name)
                continue
            axis.axhline(means[0], color=color, linewidth=1.2, linestyle='--', label=name)
            axis.axhspan(min(members[0].losses), max(members[0].losses), color=color, alpha=0.15, linewidth=0)
            if members[0].warmup_end is not None and x == 'schedule.warmup.steps':
                axis.plot(members[0].warmup_end, means[0], color=color, marker='D', markersize=5)
        values = [group.point[x] for (has, _), members in curves.items() if has for group in members]
        if values and marks and min(values) > 0 and max(values) > 20 * min(values):
            axis.set_xscale('log')
        axis.set_xlabel('updates of the warm-up' if x == 'schedule.warmup.steps' else x)
        axis.legend(fontsize=8)
    next(iter(axes.values())).set_ylabel('validation loss (bars: seeds)')
    save_figure(pyplot, figure, path)


def draw_rates(pyplot, groups, folder, path):
    """The learning rate of the first seed of each group."""
    figure, axes = panels(pyplot, groups)
    for case, axis in axes.items():
        for color, group in zip(RUN_COLORS * 9, [group for group in groups if group.case == case]):
            train = [line for line in read_metrics(folder / group.rows[0]['name']) if line['type'] == 'train']
            axis.plot([line['step'] for line in train], [line['lr'] for line in train], color=color, linewidth=1.1,
                      label=' '.join(filter(None, [group.variant, shown(group.point)])) or 'run')
        axis.set_xlabel('update')
        axis.ticklabel_format(axis='y', style='sci', scilimits=(-2, 3), useMathText=True)
        if len([group for group in groups if group.case == case]) <= 14:
            axis.legend(fontsize=7)
    next(iter(axes.values())).set_ylabel('learning rate (first seed)')
    save_figure(pyplot, figure, path)

"""Tables and pictures of dev/docs/optimizers.md, from dev/results/optimizer_study.json alone. The page keeps its prose:
what stands between <!-- NAME --> and <!-- end NAME --> is written anew."""
import math
import statistics

from plot_run import RUN_COLORS, load_pyplot, save_figure
from study_report import fill, markdown, paired, spread

LR = 'optimizer.lr'
FAMILIES = {'baselines': ['adamw', 'lion', 'signum', 'nsgd'],
            'Muon': ['muon', 'muon-kj', 'normuon', 'lionmuon', 'muon-clip', 'inexact-muon', 'drop-muon', 'schatten'],
            'Scion': ['scion', 'scion-unconstrained', 'scion-light', 'soda', 'gluon', 'clipped-scion']}


def presets(results):
    return list(dict.fromkeys(row['case'] for row in results['stages']['rates']))


def loss_of(row):
    """A run that failed can never look good."""
    return math.inf if row['val_loss'] is None else row['val_loss']


def tried(results, preset):
    """Rows of one preset over all its rates, in order of the rate."""
    rows = [row for stage in ('rates', 'ends') for row in results['stages'].get(stage, []) if row['case'] == preset]
    return sorted(rows, key=lambda row: row['point'][LR])


def best_runs(results, preset):
    """The best rate's runs with the three seeds; whether that rate is an end of those tried."""
    rows = tried(results, preset)
    best = min(rows, key=loss_of)
    seeds = [row for row in results['stages']['seeds'] if row['case'] == preset]
    return [{**best, 'seed': [0]}, *seeds], best in (rows[0], rows[-1])


def number(value):
    return f'{value:.3g}'


def main_table(results):
    muon, _ = best_runs(results, 'muon')
    adamw = results['speed']['adamw']
    lines = []
    for preset in presets(results):
        runs, at_end = best_runs(results, preset)
        difference, error = paired(runs, muon)
        rounds = [mine / theirs for mine, theirs in zip(results['speed'][preset], adamw)]
        memory = results['memory'][preset]
        parts = memory['memory']['parts']
        state = parts['optimizer state'] + parts.get('optimizer scratch', 0)
        lines.append((statistics.fmean(map(loss_of, runs)), [
            f'`{preset}`', number(runs[0]['point'][LR]) + (' (an end)' if at_end else ''), spread(runs),
            '' if preset == 'muon' else f'{difference:+.3f} ± {error:.3f}',
            f'{statistics.median(rounds):.2f} ({min(rounds):.2f} to {max(rounds):.2f})',
            f'{state / memory["parameters"]:.1f}']))
    return markdown(['preset', 'best rate', 'validation loss, 3 seeds', 'against muon',
                     "time of an update over adamw's", 'bytes a parameter'], [line for _, line in sorted(lines)])


def rates_table(results):
    lines = []
    for preset in presets(results):
        rows = tried(results, preset)
        lines.append([f'`{preset}`', ', '.join(f'{number(row["point"][LR])}: {loss_of(row):.3f}' for row in rows)])
    return markdown(['preset', 'rate: validation loss (one seed)'], lines)


def grid_table(results, stage, first):
    """Cases of a stage as lines, rates as columns, the best of each line in bold."""
    rows = results['stages'][stage]
    rates = sorted({row['point'][LR] for row in rows})
    lines = []
    for case in dict.fromkeys(row['case'] for row in rows):
        losses = {row['point'][LR]: loss_of(row) for row in rows if row['case'] == case}
        best = min(losses.values())
        lines.append([case] + [f'**{losses[rate]:.4f}**' if losses.get(rate) == best else
                               f'{losses[rate]:.4f}' if rate in losses else '' for rate in rates])
    return markdown([first] + [f'rate {number(rate)}' for rate in rates], lines)


def drop_curves(results):
    """case -> (median ms of a step, [(seconds, updates, loss)])."""
    curves = {}
    for case, curve in results['drop'].items():
        step = statistics.median(curve['step_ms']) if 'all' in case else statistics.fmean(trimmed(curve['step_ms']))
        curves[case] = step, [(updates * step / 1e3, updates, loss) for updates, loss in curve['val']]
    return curves


def trimmed(values):
    """Without the slowest tenth: other work on the machine. A step of Drop-Muon differs from the next by design, so its
    mean counts, not its median."""
    return sorted(values)[:len(values) * 9 // 10]


def drop_table(results):
    curves = drop_curves(results)
    lines = []
    for case, (step, points) in curves.items():
        seconds, _, loss = points[-1]
        reached = []
        for other, (_, others) in curves.items():
            if other.startswith('all'):
                times = [t for t, _, value in others if value <= loss]
                reached.append(f'{times[0]:.0f} s' if times else 'never')
        lines.append([case, f'{step:.0f}', f'{loss:.4f}', f'{seconds:.0f} s', ', '.join(reached)])
    names = ' and '.join(f'"{case}"' for case in curves if case.startswith('all'))
    return markdown(['layers, rate', 'ms an update', 'validation loss at the end', 'time for all updates',
                     f'{names} are there after'], lines)


def layers_table(results):
    lines = []
    for name, fit in results['layers'].items():
        case, block = name.split('/', 1)
        if case != 'gluon':
            continue
        lines.append([block.replace('model.', '').replace('.weight', ''), number(fit['L0']), number(fit['L1']),
                      number(fit['L0_other']), number(fit['L1_other'])])
    return markdown(['block', 'L0, same batch', 'L1', 'L0, another batch', 'L1'], lines)


def tables(results):
    return {'main': main_table(results), 'rates': rates_table(results),
            'coupling': grid_table(results, 'coupling', 'coefficients and steps, momentum'),
            'exponent': grid_table(results, 'exponent', 'Schatten norm'),
            'drop': drop_table(results), 'layers': layers_table(results),
            'fitted': grid_table(results, 'fitted', 'constants from')}


def draw_rates(pyplot, results, path):
    figure, axes = pyplot.subplots(1, len(FAMILIES), figsize=(13, 4.2), sharey=True, constrained_layout=True)
    for panel, (family, names) in zip(axes, FAMILIES.items()):
        for index, preset in enumerate(name for name in names if name in presets(results)):
            rows = tried(results, preset)
            best = min(rows, key=loss_of)['point'][LR]
            panel.plot([row['point'][LR] / best for row in rows], [loss_of(row) for row in rows], '.-',
                       color=RUN_COLORS[index % len(RUN_COLORS)], label=preset)
        panel.set(xscale='log', title=family, xlabel='rate over the best')
        panel.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel('validation loss (one seed)')
    axes[0].set_ylim(1.7, 2.7)
    save_figure(pyplot, figure, path)


def draw_coupling(pyplot, results, path):
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), constrained_layout=True)
    rows = results['stages']['coupling']
    for index, case in enumerate(dict.fromkeys(row['case'] for row in rows)):
        mine = sorted((row for row in rows if row['case'] == case), key=lambda row: row['point'][LR])
        axes.plot([row['point'][LR] for row in mine], [loss_of(row) for row in mine], marker='.',
                  linestyle=':' if case.endswith('0.8') else '-', color=RUN_COLORS[index % len(RUN_COLORS)], label=case)
    axes.set(xscale='log', xlabel='rate', ylabel='validation loss',
             title='Muon: coefficients, Newton-Schulz steps, momentum')
    axes.legend(frameon=False, fontsize=8)
    save_figure(pyplot, figure, path)


def draw_drop(pyplot, results, path):
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True, constrained_layout=True)
    for index, (case, (_, points)) in enumerate(drop_curves(results).items()):
        for axes, x in ((left, 1), (right, 0)):
            axes.plot([point[x] for point in points], [point[2] for point in points], color=RUN_COLORS[index], label=case)
    left.set(xlabel='updates', ylabel='validation loss', title='Eight layers: Drop-Muon and all layers')
    right.set(xlabel='seconds (mean update of the run)')
    left.legend(frameon=False)
    save_figure(pyplot, figure, path)


def write_report(results, folder):
    page = folder / 'optimizers.md'
    page.write_text(fill(page.read_text(encoding='utf-8'), tables(results)), encoding='utf-8')
    pyplot = load_pyplot()
    for name, draw in (('rates', draw_rates), ('coupling', draw_coupling), ('drop', draw_drop)):
        draw(pyplot, results, folder / 'figures' / f'optimizers_{name}.png')

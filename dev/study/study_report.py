"""Tables and pictures of dev/docs/warmup_study.md, from dev/results/warmup_study.json alone. The page keeps its
prose: what stands between <!-- NAME --> and <!-- end NAME --> is written anew."""
import math
import re
import statistics

from plot_run import RUN_COLORS, PlotError, save_figure, style
from sweeps.plan import SweepError

STEPS = 'schedule.warmup.steps'
STAR = 'schedule.warmup.delta_star'
TARGET = 'schedule.warmup.target_loss'
EMA = 'schedule.warmup.loss_ema'
NAMES = {'cosine': 'half-cosine', 'adaptive': 'adaptive, our defaults', 'published': 'adaptive, as published',
         'gap': 'adaptive, decay by the gap', 'half-cosine': "half-cosine of the adaptive one's length",
         'replayed': "rates of another seed's adaptive run"}


class Rows:
    """The rows of a stage; a case there is CASE/VARIANT, sometimes with a seed behind."""

    def __init__(self, rows):
        self.rows = []
        for row in rows:
            case, _, variant = row['case'].partition('/')
            self.rows.append({**row, 'case': case, 'variant': variant.split('/')[0]})

    def of(self, case, variant=None, **point):
        return [row for row in self.rows if row['case'] == case and variant in (None, row['variant']) and
                all(row['point'].get(key) == value for key, value in point.items())]

    def cases(self):
        return list(dict.fromkeys(row['case'] for row in self.rows))


def losses(rows):
    """By seed; a run that failed is an infinite loss, so that it can never look good."""
    return {tuple(row['seed']): math.inf if row['val_loss'] is None else row['val_loss'] for row in rows}


def mean(rows):
    return statistics.fmean(losses(rows).values())


def paired(rows, others):
    """Mean difference over the seeds that both have, and its standard error."""
    a, b = losses(rows), losses(others)
    differences = [a[seed] - b[seed] for seed in a if seed in b]
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return statistics.fmean(differences), math.nan
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def end_of(rows):
    ends = [row['warmup_end'] for row in rows if row['warmup_end'] is not None]
    return f'{statistics.fmean(ends):.0f}' if ends else 'never'


def spread(rows):
    values = losses(rows).values()
    return f'{statistics.fmean(values):.4f} ({min(values):.4f} to {max(values):.4f})'


def markdown(head, lines):
    return '\n'.join(['| ' + ' | '.join(line) + ' |' for line in (head, ['---'] * len(head), *lines)])


def best_manual(stage, case):
    lengths = sorted({row['point'][STEPS] for row in stage.of(case, 'cosine')})
    return min(lengths, key=lambda length: mean(stage.of(case, 'cosine', **{STEPS: length})))


def rates_table(results):
    lines = [[row['case'], f'{row["point"]["optimizer.lr"]:g}', f'{row["val_loss"]:.4f}']
             for row in results['stages']['rates']]
    return markdown(['optimizer', 'peak rate', 'validation loss'], lines)


def main_rows(results, case):
    """(what, rows) of a case: every manual length, then everything adaptive, from all stages."""
    warmups = Rows(results['stages']['warmups'])
    lengths = sorted({row['point'][STEPS] for row in warmups.of(case, 'cosine')})
    found = [(f'half-cosine, {length}', warmups.of(case, 'cosine', **{STEPS: length})) for length in lengths]
    for stage, variants in (('warmups', ('adaptive', 'published', 'gap')),
                            ('separating', ('replayed', 'half-cosine'))):
        rows = Rows(results['stages'].get(stage, []))
        found += [(NAMES[variant], rows.of(case, variant)) for variant in variants if rows.of(case, variant)]
    return found


def main_table(results):
    warmups, lines = Rows(results['stages']['warmups']), []
    for case in warmups.cases():
        best = warmups.of(case, 'cosine', **{STEPS: best_manual(warmups, case)})
        for what, rows in main_rows(results, case):
            difference, error = paired(rows, best)
            against = 'best by hand' if rows == best else f'{difference:+.4f} ± {error:.4f}'
            lines.append([case, what, spread(rows), end_of(rows), against])
    return markdown(['case', 'warm-up', 'validation loss (seeds)', 'ends at', 'against the best by hand'], lines)


def separating_table(results):
    warmups, others = Rows(results['stages']['warmups']), Rows(results['stages']['separating'])
    lines = []
    for case in warmups.cases():
        adaptive = warmups.of(case, 'adaptive')
        for variant in ('replayed', 'half-cosine'):
            difference, error = paired(others.of(case, variant), adaptive)
            lines.append([case, NAMES[variant], f'{difference:+.4f} ± {error:.4f}'])
    return markdown(['case', 'in place of the adaptive warm-up', 'changes the loss by'], lines)


def value_table(results, stage, key, head):
    rows = Rows(results['stages'][stage])
    lines = []
    for case in rows.cases():
        for variant in dict.fromkeys(row['variant'] for row in rows.of(case)):
            for value in sorted({row['point'].get(key) for row in rows.of(case, variant)},
                                key=lambda v: (v is None, v)):
                group = rows.of(case, variant, **{key: value})
                name = variant if value is None else f'{variant}, {value:g}'
                lines.append([case, name, spread(group), end_of(group)])
    return markdown(['case', head, 'validation loss (seeds)', 'ends at'], lines)


def mixed_table(results, stage, names):
    """Manual lengths and adaptive values in one table."""
    rows, lines = Rows(results['stages'][stage]), []
    for case in rows.cases():
        groups = {}
        for row in rows.of(case):
            values = ''.join(f', {names[key]} {value:g}' for key, value in row['point'].items())
            groups.setdefault(NAMES.get(row['variant'], row['variant']) + values, []).append(row)
        lines += [[case, what, spread(group), end_of(group)] for what, group in groups.items()]
    return markdown(['case', 'warm-up', 'validation loss (seeds)', 'ends at'], lines)


def delta_star_table(results):
    warmups, by_hand = Rows(results['stages']['warmups']), Rows(results['stages']['delta_star'])
    lines = []
    for case in by_hand.cases():
        gap = statistics.fmean(row['first_loss'] for row in by_hand.of(case)) - results['cases'][case]['target']
        for star in sorted({row['point'][STAR] for row in by_hand.of(case)}):
            rows = by_hand.of(case, **{STAR: star})
            lines.append([case, f'{star:g}', f'{star / gap:.2f}', spread(rows), end_of(rows)])
        rows = [row for row in warmups.of(case, 'adaptive') if row['seed'] in ([0], [1])]
        star = statistics.fmean(row['delta_star'] for row in rows)
        lines.append([case, f'{star:.3f} (exact)', f'{star / gap:.2f}', spread(rows), end_of(rows)])
    return markdown(['case', 'delta_star', 'of the first gap', 'validation loss (seeds)', 'ends at'], lines)


def settings_table(results):
    """delta_star by two rules, div 5 and 100."""
    warmups, lines = Rows(results['stages']['warmups']), []
    stage = Rows(results['stages']['settings'] + results['stages']['control'])
    for case in stage.cases():
        best = warmups.of(case, 'cosine', **{STEPS: best_manual(warmups, case)})
        for what, rows in (('exact, div 100', warmups.of(case, 'adaptive')),
                           *((variant, stage.of(case, variant)) for variant in
                             dict.fromkeys(row['variant'] for row in stage.of(case)))):
            stars = [row['delta_star'] for row in rows if row['delta_star'] is not None]
            star = f'{statistics.fmean(stars):.2f}' if stars else ''
            difference, error = paired(rows, best)
            lines.append([case, what, star, spread(rows), end_of(rows), f'{difference:+.4f} ± {error:.4f}'])
    return markdown(['case', 'rule', 'delta_star', 'validation loss (seeds)', 'ends at', 'against the best by hand'],
                    lines)


def tables(results):
    return {'rates': rates_table(results), 'warmups': main_table(results), 'separating': separating_table(results),
            'delta_star': delta_star_table(results),
            'target': value_table(results, 'target', TARGET, 'target loss'),
            'noise': mixed_table(results, 'noise', {STEPS: 'updates', EMA: 'loss_ema'}),
            'settings': settings_table(results), 'longer': mixed_table(results, 'longer', {STEPS: 'updates'}),
            'pretrained': mixed_table(results, 'pretrained', {STEPS: 'updates'})}


def fill(page, blocks):
    for name, text in blocks.items():
        pattern = re.compile(rf'(<!-- {name} -->\n).*?(<!-- end {name} -->)', re.DOTALL)
        if not pattern.search(page):
            raise SweepError(f'the page has no place for the table "{name}"', 1)
        page = pattern.sub(lambda match, text=text: match.group(1) + text + '\n' + match.group(2), page)
    return page


def axes_of(pyplot, cases, height=3.6):
    figure, axes = pyplot.subplots(1, len(cases), figsize=(3.4 * len(cases), height), squeeze=False,
                                   constrained_layout=True)
    for axis, case in zip(axes[0], cases):
        axis.set_title(case, fontweight='bold', fontsize=10)
    return figure, list(zip(cases, axes[0]))


def band(axis, rows, color, label):
    values = losses(rows).values()
    axis.axhline(statistics.fmean(values), color=color, linewidth=1.2, linestyle='--', label=label)
    axis.axhspan(min(values), max(values), color=color, alpha=0.15, linewidth=0)
    ends = [row['warmup_end'] for row in rows if row['warmup_end']]
    if ends:
        axis.plot(statistics.fmean(ends), statistics.fmean(values), color=color, marker='D', markersize=5)


def points(axis, at, groups, color, label):
    means = [mean(rows) for rows in groups]
    below = [value - min(losses(rows).values()) for value, rows in zip(means, groups)]
    above = [max(losses(rows).values()) - value for value, rows in zip(means, groups)]
    axis.errorbar(at, means, yerr=[below, above], color=color, marker='o', markersize=4, capsize=3, label=label)


def draw_warmups(pyplot, results, path):
    warmups = Rows(results['stages']['warmups'])
    figure, axes = axes_of(pyplot, warmups.cases())
    for case, axis in axes:
        lengths = sorted({row['point'][STEPS] for row in warmups.of(case, 'cosine')})
        points(axis, lengths, [warmups.of(case, 'cosine', **{STEPS: length}) for length in lengths], RUN_COLORS[0],
               'half-cosine')
        for color, (variant, label) in zip(RUN_COLORS[1:], (('adaptive', 'adaptive'), ('published', 'as published'),
                                                        ('gap', 'decay by the gap'))):
            band(axis, warmups.of(case, variant), color, label)
        band(axis, Rows(results['stages']['settings']).of(case, 'unweighted, div 5'), RUN_COLORS[4],
             'unweighted, div 5')
        axis.set_xscale('log')
        axis.set_xlabel('updates of the warm-up (of 600)')
    axes[0][1].set_ylabel('final validation loss')
    axes[len(axes) // 2][1].legend(fontsize=7, loc='center left')
    save_figure(pyplot, figure, path)


def draw_traces(pyplot, results, path):
    """Rates (above) and training losses of seed 0."""
    cases = Rows(results['stages']['warmups']).cases()
    figure, axes = pyplot.subplots(2, len(cases), figsize=(3.4 * len(cases), 5), sharex=True, squeeze=False,
                                   constrained_layout=True)
    for column, case in enumerate(cases):
        start = case.replace(', ', '_').replace(' ', '_')
        for color, (key, label) in zip(RUN_COLORS, ((f'warmups/{start}_cosine-seed0-steps40', 'half-cosine, 40'),
                                                (f'warmups/{start}_adaptive-seed0', 'adaptive'),
                                                (f'warmups/{start}_published-seed0', 'as published'),
                                                (f'warmups/{start}_gap-seed0', 'decay by the gap'),
                                                (f'settings/{start}_unweighted_div_5-seed0', 'unweighted, div 5'))):
            trace = results['traces'].get(key)
            if trace is None:
                continue
            steps = [index * trace['every'] for index in range(len(trace['lr']))]
            axes[0][column].plot(steps, trace['lr'], color=color, linewidth=1.1, label=label)
            smooth = [statistics.fmean(trace['loss'][max(0, i - 4):i + 5]) for i in range(len(steps))]
            axes[1][column].plot(steps, smooth, color=color, linewidth=1.1)
        axes[0][column].set_title(case, fontweight='bold', fontsize=10)
        axes[0][column].ticklabel_format(axis='y', style='sci', scilimits=(-2, 3), useMathText=True)
        axes[1][column].set_xlabel('update')
        axes[1][column].set_ylim(1.4, 4)
    axes[0][0].set_ylabel('learning rate')
    axes[1][0].set_ylabel('training loss (smoothed)')
    axes[1][0].legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, loc='upper right')
    save_figure(pyplot, figure, path)


def draw_delta_star(pyplot, results, path):
    by_hand, warmups = Rows(results['stages']['delta_star']), Rows(results['stages']['warmups'])
    figure, axes = axes_of(pyplot, by_hand.cases())
    for case, axis in axes:
        stars = sorted({row['point'][STAR] for row in by_hand.of(case)})
        points(axis, stars, [by_hand.of(case, **{STAR: star}) for star in stars], RUN_COLORS[0], 'by hand')
        for color, stage, variant, label in (
                (RUN_COLORS[1], warmups, 'adaptive', 'exact'),
                (RUN_COLORS[4], Rows(results['stages']['settings']), 'unweighted, div 100', 'unweighted')):
            rows = stage.of(case, variant)
            points(axis, [statistics.fmean(row['delta_star'] for row in rows)], [rows], color, label)
        best = best_manual(warmups, case)
        axis.axhline(mean(warmups.of(case, 'cosine', **{STEPS: best})), color='#555555', linestyle=':',
                     label='best half-cosine')
        axis.set_xlabel('delta_star')
    axes[0][1].set_ylabel('final validation loss')
    axes[0][1].legend(fontsize=7)
    save_figure(pyplot, figure, path)


def draw_target(pyplot, results, path):
    stage, warmups = Rows(results['stages']['target']), Rows(results['stages']['warmups'])
    figure, axes = axes_of(pyplot, stage.cases())
    for case, axis in axes:
        targets = sorted({row['point'][TARGET] for row in stage.of(case, 'ours')})
        points(axis, targets, [stage.of(case, 'ours', **{TARGET: target}) for target in targets], RUN_COLORS[0],
               'adaptive')
        best = best_manual(warmups, case)
        reached = mean(warmups.of(case, 'cosine', **{STEPS: best}))
        axis.axhline(reached, color='#555555', linestyle=':', label='best half-cosine')
        axis.axvline(reached, color=RUN_COLORS[1], linewidth=1, linestyle='--', label='target = what it reaches')
        axis.set_xlabel('target loss')
    axes[0][1].set_ylabel('final validation loss')
    axes[0][1].legend(fontsize=7)
    save_figure(pyplot, figure, path)


def write_report(results, docs):
    page = docs / 'warmup_study.md'
    page.write_text(fill(page.read_text(encoding='utf-8'), tables(results)), encoding='utf-8')
    try:
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot
    except ImportError as error:
        print(f'no pictures: matplotlib is needed ({error}): install python3-matplotlib')
        return
    style(pyplot)
    (docs / 'figures').mkdir(exist_ok=True)
    try:
        for name, draw in (('warmups', draw_warmups), ('traces', draw_traces), ('delta_star', draw_delta_star),
                           ('target', draw_target)):
            draw(pyplot, results, docs / 'figures' / f'warmup_{name}.png')
    except PlotError as error:
        raise SweepError(str(error), 1) from None

"""Tables and pictures of dev/docs/communication.md, from dev/results/communication_study.json alone. The page keeps its
prose: what stands between <!-- NAME --> and <!-- end NAME --> is written anew."""
import math

from optimizer_report import LR, loss_of, number
from plot_run import RUN_COLORS, load_pyplot, save_figure
from study_report import fill, losses, markdown, paired, spread

WAYS = ('up_bytes', 'down_bytes')
# name -> (bytes a second that a rank can send, and at the same time receive, in words)
LINKS = {'1 Gbit/s': 1e9 / 8, '25 Gbit/s': 25e9 / 8, '400 GB/s': 400e9}
SPEED = 790e12 * 0.5  # operations a second of a rank
KEY_CURVES = ['ef21/up topk 0.15 natural', 'ef21/up columns 0.15 natural', 'ef21/up rank 4 natural',
              'ef21/both topk 0.15 natural']
OPTIMIZERS = ['adamw', 'muon']


def of(results, stage, case=None):
    return [row for row in results['stages'][stage] if case in (None, row['case'])]


def cases(results, stage):
    return list(dict.fromkeys(row['case'] for row in results['stages'][stage]))


def baseline(results):
    """The uncompressed runs: three seeds of the best rate."""
    return of(results, 'baseline')


def best_rate(results):
    return min(of(results, 'rates'), key=loss_of)


def a_rank(results, row, way):
    """Bytes that a rank sends in an update on average, without the first, in which EF21 sends everything."""
    return row[way][1] / (row['updates'] - 1) / results['ranks']


def saving(results, row, way):
    """Of a way, against gradients or weights of the same model whole at every update."""
    return a_rank(results, baseline(results)[0], way) / a_rank(results, row, way)


def total(row, way):
    return sum(row[way])


def against(results, rows, others):
    """Difference to the others, with its standard error where there are several seeds, and in spreads of the baseline."""
    difference, error = paired(rows, others)
    known = losses(baseline(results)).values()
    times = difference / (max(known) - min(known))
    return [f'{difference:+.3f}' + ('' if math.isnan(error) else f' ± {error:.3f}'), f'{times:+.1f}']


def loss_text(rows):
    return spread(rows) if len(rows) > 1 else f'{loss_of(rows[0]):.4f}'


def rates_table(results):
    best = best_rate(results)
    return markdown(['rate', 'validation loss (one seed)'],
                    [[number(row['point'][LR]), f'{loss_of(row):.4f}' + (' (the baseline)' if row == best else '')]
                     for row in of(results, 'rates')])


def ef21_lines(results):
    base = baseline(results)
    lines = [['none', loss_text(base), '', '', '1', '1', f'{base[0]["step_ms"]:.0f}']]
    for case in cases(results, 'ef21'):
        rows = of(results, 'ef21', case)
        lines.append([case, loss_text(rows), *against(results, rows, base),
                      *(f'{saving(results, rows[0], way):.3g}' for way in WAYS), f'{rows[0]["step_ms"]:.0f}'])
    return lines


def ef21_table(results):
    return markdown(['compressed', 'validation loss (seeds)', 'against none', 'in spreads of none', 'saved up', 'saved down',
                     'ms an update'], ef21_lines(results))


def local_table(results):
    lines = []
    for optimizer in OPTIMIZERS:
        shared = of(results, 'mean', optimizer)
        lines.append([optimizer, 'shared at every update', '1', '1', loss_text(shared), '', f'{shared[0]["step_ms"]:.0f}'])
        for case in cases(results, 'local'):
            rows = of(results, 'local', case)
            name, outer, every = case.split(', ')
            if name == optimizer:
                lines.append([name, outer, every, f'{saving(results, rows[0], "up_bytes"):.3g}', loss_text(rows),
                              against(results, rows, shared)[0], f'{rows[0]["step_ms"]:.0f}'])
    return markdown(['optimizer', 'outer step', 'K', 'saved, each way', 'validation loss', 'against shared', 'ms an update'],
                    lines)


def fewer_table(results):
    lines = []
    for case in cases(results, 'fewer'):
        optimizer, every = case.split(', ')
        shared = of(results, 'mean', optimizer)
        for row in of(results, 'fewer', case):
            apart = [other for name in cases(results, 'local') if name.startswith(f'{optimizer}, ') and
                     name.endswith(f', {every}') for other in of(results, 'local', name)]
            best = min(apart, key=loss_of)
            lines.append([optimizer, every, str(row['updates']), number(row['point'][LR]), f'{loss_of(row):.4f}',
                          against(results, [row], shared)[0],
                          f'{loss_of(best):.4f} ({best["case"].split(", ")[1]})'])
    return markdown(['optimizer', 'batches as one', 'updates', 'rate', 'validation loss', 'against shared',
                     'best of local steps at this traffic'], lines)


def seconds(plan, link):
    """Of an update: what a rank computes, then what the busiest owner gets and sends; nothing at the same time."""
    sent = plan['busiest'] * (plan['up_bytes_per_update'] + plan['down_bytes_per_update'])
    return plan['flops_per_update'] / plan['ranks'] / SPEED + sent / link


def shown_seconds(value):
    return f'{1e3 * value:.3g} ms' if value < 1 else f'{value:.3g} s'


def links_table(results):
    lines = []
    for model in dict.fromkeys(name.split('/')[0] for name in results['plans']):
        plans = {name.split('/')[1]: plan for name, plan in results['plans'].items() if name.startswith(f'{model}/')}
        for name, plan in plans.items():
            times = []
            for link in LINKS.values():
                own, whole = seconds(plan, link), seconds(plans['mean'], link)
                times.append(shown_seconds(own) + ('' if name == 'mean' else f' ({whole / own:.3g}x)'))
            sizes = [f'{value:.0f}' if value >= 100 else f'{value:.3g}' for value in
                     (*(plan[f'{way}_per_update'] / 1e6 for way in WAYS), plan['state_bytes'] / 1e6)]
            lines.append([model, name, *sizes, *times])
    return markdown(['model', 'communication', 'MB up', 'MB down', 'MB of states', *LINKS], lines)


def tables(results):
    return {'rates': rates_table(results), 'ef21': ef21_table(results), 'local': local_table(results),
            'fewer': fewer_table(results), 'links': links_table(results)}


def draw_bytes(pyplot, results, path):
    """Final loss against the bytes that went up in the whole run: every run is a point."""
    figure, axes = pyplot.subplots(figsize=(9, 5.5), constrained_layout=True)
    groups = [('ef21-muon, uncompressed', baseline(results), 's'),
              *((f'ef21-muon, {case}', of(results, 'ef21', case), 'o') for case in cases(results, 'ef21')
                if not case.startswith('down')),
              *((f'{name}, shared', of(results, 'mean', name), 's') for name in OPTIMIZERS),
              *((f'{name}, local {every}', [row for case in cases(results, 'local') if case.startswith(f'{name}, ') and
                                            case.endswith(f', {every}') for row in of(results, 'local', case)], '^')
                for name in OPTIMIZERS for every in (4, 16)),
              ('muon, fewer updates', of(results, 'fewer'), 'x')]
    for index, (label, rows, marker) in enumerate(groups):
        color = RUN_COLORS[index % len(RUN_COLORS)]
        axes.plot([total(row, 'up_bytes') / 1e6 for row in rows], [loss_of(row) for row in rows], marker, color=color,
                  linestyle='none', markersize=6, markerfacecolor='none' if index >= len(RUN_COLORS) else color, label=label)
    known = losses(baseline(results)).values()
    axes.axhspan(min(known), max(known), color='#555555', alpha=0.15, linewidth=0)
    axes.set(xscale='log', xlabel='MB sent up by all ranks in the run', ylabel='final validation loss',
             title='300 updates on 4 ranks; grey: seeds of ef21-muon without compression')
    axes.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    save_figure(pyplot, figure, path)


def draw_curves(pyplot, results, path):
    curves = results['curves']
    base = curves['baseline/mean']
    panels = {'EF21 (ef21-muon)': [('uncompressed', base), *((name.split('/')[1], curves[name]) for name in KEY_CURVES)]}
    for optimizer in OPTIMIZERS:
        panels[f'{optimizer}: K = 16 local updates'] = [('shared', curves[f'mean/{optimizer}'])] + [
            (name.split(', ')[1], curves[name]) for name in curves if name.startswith(f'local/{optimizer}, ') and
            name.endswith(', 16')]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(13, 4.2), sharey=True, constrained_layout=True)
    for panel, (title, lines) in zip(axes, panels.items()):
        for color, (label, values) in zip(RUN_COLORS, lines):
            panel.plot([10 * (i + 1) for i in range(len(values))], values, color=color, linewidth=1.3, label=label)
        panel.set(title=title, xlabel='update', ylim=(1.6, 3.6))
        panel.legend(fontsize=8)
    axes[0].set_ylabel('training loss (means of 10 updates, one seed)')
    save_figure(pyplot, figure, path)


def write_report(results, folder):
    page = folder / 'communication.md'
    page.write_text(fill(page.read_text(encoding='utf-8'), tables(results)), encoding='utf-8')
    pyplot = load_pyplot()
    for name, draw in (('bytes', draw_bytes), ('curves', draw_curves)):
        draw(pyplot, results, folder / 'figures' / f'communication_{name}.png')

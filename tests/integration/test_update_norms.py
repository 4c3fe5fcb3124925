"""log.update_norms: against the checkpoints around an update, in TensorBoard's file, and that training does not notice."""
import array
import json
import math
import struct

from cli import CliTest

OPTIMIZERS = {'adamw': {'preset': 'adamw', 'lr': 0.01, 'weight_decay': 0.1},
              'muon-clip': {'preset': 'muon-clip', 'lr': 0.05, 'qk_clip': 0.2}}


def read_weights(path):
    """{name: values} of an fp32 safetensors file."""
    data = path.read_bytes()
    size = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + size])
    header.pop('__metadata__', None)
    assert all(entry['dtype'] == 'F32' for entry in header.values())
    return {name: array.array('f', data[8 + size:][slice(*entry['data_offsets'])]) for name, entry in header.items()}


def norm(values):
    return math.sqrt(math.fsum(value * value for value in values))


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7f) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """{number: [value, ...]} of a protobuf message; what is fixed or counted stays bytes."""
    found, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        else:
            size, at = (8, at) if key & 7 == 1 else (4, at) if key & 7 == 5 else varint(data, at)
            value, at = data[at:at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def doubles(data):
    return list(struct.unpack(f'<{len(data) // 8}d', data))


def read_events(folder):
    """{(tag, step): number, or the fields of a histogram} of the one event file of a run."""
    (path,) = folder.glob('events.out.tfevents.*')
    data, found, at = path.read_bytes(), {}, 0
    while at < len(data):
        size = struct.unpack('<Q', data[at:at + 8])[0]
        event = fields(data[at + 12:at + 12 + size])
        at += size + 16
        for summary in event.get(5, []):
            for value in map(fields, fields(summary)[1]):
                key = value[1][0].decode(), event[2][0]
                found[key] = struct.unpack('<f', value[2][0])[0] if 2 in value else fields(value[5][0])
    return found


class UpdateNormsTest(CliTest):
    def watched(self, run='run'):
        return self.metrics(run, 'update_norms')

    def test_quotients_are_those_of_the_checkpoints(self):
        for name, optimizer in OPTIMIZERS.items():
            with self.subTest(name):
                self.config(optimizer=optimizer, checkpoint={'every': 1, 'keep': 0}, log={'update_norms': True})
                self.train('--set', f'run.dir={name}')
                lines = {line['step']: line['tensors'] for line in self.watched(name)}
                self.assertEqual(list(lines), list(range(8)))
                for step in range(1, 8):
                    old, new = (read_weights(self.checkpoint(at, name) / 'model.safetensors') for at in (step, step + 1))
                    self.assertEqual(set(lines[step]), set(old))
                    for tensor, value in lines[step].items():
                        moved = norm(a - b for a, b in zip(new[tensor], old[tensor]))
                        self.assertGreater(moved, 0.0)
                        self.assertAlmostEqual(value * norm(old[tensor]) / moved, 1.0, delta=1e-6, msg=tensor)

    def test_training_does_not_notice(self):
        for name, optimizer in OPTIMIZERS.items():
            self.config(optimizer=optimizer)
            for run, more in ((f'{name}0', ()), (f'{name}1', ('--set', 'log.update_norms=true'))):
                self.train('--set', f'run.dir={run}', *more)
            for file in ('model.safetensors', 'optimizer.safetensors'):
                self.assertEqual(*((self.checkpoint(8, run) / file).read_bytes() for run in (f'{name}0', f'{name}1')))
            self.assertEqual(len(self.watched(f'{name}1')), 8)
            self.assertEqual(self.watched(f'{name}0'), [])

    def test_with_the_lines_of_metrics_in_other_types(self):
        for compute in ('bf16', 'fp64'):
            self.config(precision={'compute': compute}, log={'update_norms': True, 'every': 3})
            self.train('--set', f'run.dir={compute}')
            steps = [[line['step'] for line in self.metrics(compute, kind)] for kind in ('update_norms', 'train')]
            self.assertEqual(steps, [[0, 3, 6, 7]] * 2)
            for line in self.watched(compute):
                self.assertTrue(all(0.0 < value < 2.0 for value in line['tensors'].values()), line)

    def test_interrupted_and_continued(self):
        self.config(log={'update_norms': True, 'every': 2}, checkpoint={'every': 3, 'keep': 0})
        for run in ('whole', 'parts'):
            self.train('--set', f'run.dir={run}')
        for step in (6, 8):
            self.checkpoint(step, 'parts').rename(self.folder / f'gone{step}')
        self.assertIn('resumed after 3 updates', self.train('--set', 'run.dir=parts').out)
        self.assert_same_run('whole', 'parts', 8)
        self.assertEqual([line['step'] for line in self.watched('parts')], [0, 2, 4, 6, 7])

    def test_tensorboard_has_a_histogram_of_each_kind(self):
        self.config(log={'update_norms': True, 'every': 7})
        self.train()
        events = {key: value for key, value in read_events(self.folder / 'run').items()
                  if key[0].startswith('update_norms/')}
        lines = {line['step']: line['tensors'] for line in self.watched()}
        layered = ['input_layernorm', 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'post_attention_layernorm', 'gate_proj',
                   'up_proj', 'down_proj']
        kinds = [*layered, 'embed_tokens', 'norm']
        self.assertEqual(sorted(events), sorted((f'update_norms/{kind}', step) for kind in kinds for step in (0, 7)))
        for step, tensors in lines.items():
            for kind in kinds:
                found = events[f'update_norms/{kind}', step]
                values = [value for name, value in tensors.items() if name.endswith(f'.{kind}.weight')]
                if kind not in layered:
                    self.assertAlmostEqual(found, *values, delta=1e-6)
                    continue
                self.assertEqual([doubles(found[number][0])[0] for number in range(1, 6)],
                                 [min(values), max(values), 2.0, sum(values), sum(value * value for value in values)])
                limits, counts = doubles(found[6][0]), doubles(found[7][0])
                self.assertEqual((len(limits), sum(counts), limits[-1]), (len(counts), 2.0, max(values)))

    def test_several_ranks_and_their_plan(self):
        """Rank 0 alone keeps a copy; the plan is of the rank that takes most."""
        self.config(optimizer={'preset': 'muon', 'lr': 0.02}, log={'update_norms': True}, batch={'micro_batch': 1})
        for ranks in (1, 2, 3):
            batch = ('--set', f'batch.sequences={6 if ranks == 3 else 4}')
            self.train('--set', f'run.dir=of{ranks}', '--device', 'cpu', '--gpus', ranks, *batch)
            plan = self.run_cli('plan', '--config', 'config.json', '--ranks', ranks, '--json', *batch)
            memory = json.loads(plan.out)['memory']
            self.assertEqual(memory['total'], self.metrics(f'of{ranks}', 'summary')[0]['memory_bytes'])
            self.assertIn('weights before the update', memory['parts'])
        for one, two in zip(self.watched('of1'), self.watched('of2')):
            for name, value in one['tensors'].items():
                self.assertAlmostEqual(two['tensors'][name] / value, 1.0, delta=0.05, msg=(name, one['step']))
        plain = json.loads(self.run_cli('plan', '--config', 'config.json', '--json', '--set', 'log.update_norms=false').out)
        self.assertNotIn('weights before the update', plain['memory']['parts'])

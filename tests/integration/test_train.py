"""A run from configuration to checkpoint, and what other programs read of it."""
import json
import math
import pathlib
import struct

from cli import ROOT, CliTest


def read_events(path):
    """TFRecord framing only: the records' bytes."""
    content, records, at = path.read_bytes(), [], 0
    while at < len(content):
        length, = struct.unpack_from('<Q', content, at)
        records.append(content[at + 12:at + 12 + length])
        at += 16 + length
    return records


class TrainTest(CliTest):
    def test_learns_and_leaves_the_contract_behind(self):
        self.config({'run': {'steps': 120}, 'optimizer': {'preset': 'muon', 'lr': 0.02},
                     'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 1.5, 'div': 5},
                                  'decay': {'type': 'cosine'}},
                     'eval': {'every': 50, 'batches': 4}, 'checkpoint': {'every': 40, 'keep': 2}})
        self.train()
        lines = self.metrics()
        self.assertEqual([line['type'] for line in lines].count('schedule'), 1)
        self.assertEqual(lines[-1]['type'], 'summary')
        for key in ('kappa', 'delta0', 'delta_star', 'K0', 'K1', 'K2'):
            self.assertIn(key, lines[0])
        train = self.metrics(kind='train')
        self.assertEqual([line['step'] for line in train], list(range(120)))
        self.assertEqual(set(train[0]), {'type', 'step', 'tokens', 'loss', 'lr', 'delta', 'phase',
                                         'grad_norm', 'tokens_per_s', 'mfu', 'step_ms'})
        self.assertAlmostEqual(train[0]['loss'], math.log(64), delta=0.2)
        self.assertAlmostEqual(train[0]['lr'], 0.02 / 5)
        self.assertLess(train[-1]['loss'], 0.6 * train[0]['loss'])
        self.assertEqual([line['step'] for line in self.metrics(kind='val')], [50, 100, 120])
        checkpoints = sorted(p.name for p in (self.folder / 'run' / 'checkpoints').iterdir())
        self.assertEqual(checkpoints, ['step_00000080', 'step_00000120'])
        config = json.loads((self.folder / 'run' / 'run_config.json').read_text())
        self.assertEqual(config['run']['steps'], 120)
        events = list((self.folder / 'run').glob('events.out.tfevents.*'))
        self.assertEqual(len(events), 1)
        self.assertTrue(any(b'train/loss' in record for record in read_events(events[0])))
        # `eval` agrees with the run: the same tokens give the same loss.
        result = self.run_cli('eval', '--checkpoint', self.checkpoint(120), '--data', 'data/val.bin',
                              '--json')
        self.assertEqual(result.status, 0, result.err)
        values = json.loads(result.out)
        self.assertAlmostEqual(values['perplexity'], math.exp(values['loss']), places=6)
        self.assertEqual(values['tokens'], 799)
        self.assertAlmostEqual(values['loss'], lines[-1]['val_loss'], delta=0.15)
        told = self.run_cli('eval', '--checkpoint', self.checkpoint(120), '--data', 'data/val.bin').out
        self.assertIn(f'\nloss {values["loss"]:.4f}, perplexity {values["perplexity"]:.5g}\n', told)

    def test_what_mfu_is_a_share_of(self):
        self.config(run={'steps': 2}, log={'peak_tflops': 0.25})
        self.train()
        plan = json.loads(self.run_cli('plan', '--config', 'config.json', '--json').out)
        for line in self.metrics(kind='train'):
            self.assertAlmostEqual(line['mfu'] * 0.25e12 / plan['flops_per_token'] / line['tokens_per_s'], 1, places=9)
        self.train('--set', 'run.dir=measured', '--set', 'log.peak_tflops=0')
        for line in self.metrics('measured', 'train'):
            self.assertTrue(0 < line['mfu'] < 1.2, line)

    def test_same_bits_again(self):
        self.config()
        for run in ('one', 'two'):
            self.train('--set', f'run.dir={run}')
        self.assertEqual((self.checkpoint(8, 'one') / 'model.safetensors').read_bytes(),
                         (self.checkpoint(8, 'two') / 'model.safetensors').read_bytes())

    def test_a_users_own_preset(self):
        """A new mixture of stages is one JSON file."""
        (self.folder / 'mine.json').write_text(json.dumps({'groups': [
            {'match': {'name': '*.mlp.*'}, 'momentum': {'type': 'ema', 'beta': 0.9},
             'norm': {'type': 'spectral', 'coefficients': 'polar-express', 'steps': 4},
             'radius': 'sqrt(max(1,m/n))', 'decay': 'decoupled'},
            {'match': {'role': 'matrix'}, 'momentum': {'type': 'lion', 'beta1': 0.9, 'beta2': 0.99},
             'norm': {'type': 'sign'}, 'radius': 0.05},
            {'match': {'role': 'any'}, 'momentum': {'type': 'heavy_ball', 'beta': 0.9},
             'norm': {'type': 'frobenius'}, 'lr_scale': 0.5}]}))
        self.config({'run': {'steps': 60}, 'optimizer': {'preset': 'mine.json', 'lr': 0.02}})
        self.train()
        train = self.metrics(kind='train')
        self.assertLess(train[-1]['loss'], train[0]['loss'] - 0.5)

    def test_types_inside_of_newton_schulz(self):
        """bf16 only on processors with instructions for it, fp16 on no CPU, none by itself."""
        losses = {}
        for inner in ('auto', 'fp32', 'bf16', 'fp16'):
            groups = [{'match': {'role': 'matrix'}, 'norm': {'type': 'spectral', 'coefficients': 'jordan', 'inner': inner},
                       'radius': 0.1},
                      {'match': {'role': 'any'}, 'norm': {'type': 'sign'}, 'radius': 0.1}]
            self.config({'run': {'steps': 4, 'dir': inner}, 'optimizer': {'preset': None, 'groups': groups}})
            result = self.run_cli('train', '--config', 'config.json', '--device', 'cpu')
            if result.status == 2:
                self.assertIn(f'optimizer.groups[0].norm.inner = "{inner}": this processor has no matrix products in '
                              f'{inner}', result.err)
                self.assertIn('or fp32, or --device cuda', result.err)
                continue
            self.assertEqual(result.status, 0, result.err)
            losses[inner] = [line['loss'] for line in self.metrics(inner, 'train')]
        flags = pathlib.Path('/proc/cpuinfo').read_text().split()
        self.assertEqual(set(losses), {'auto', 'fp32'} | ({'bf16'} if 'avx512_bf16' in flags else set()))
        self.assertEqual(losses['auto'], losses['fp32'])
        for fp32, bf16 in zip(losses['fp32'], losses.get('bf16', [])):
            self.assertAlmostEqual(fp32, bf16, delta=0.05)
        self.assertNotEqual(losses['fp32'][1:], losses.get('bf16'))

    def test_start_from_a_checkpoint(self):
        self.config({'run': {'steps': 60}})
        self.train()
        self.config({'run': {'dir': 'second', 'steps': 2}, 'init': {'from': str(self.checkpoint(60))}})
        self.train()
        # A fresh model starts at ln 64 = 4.16.
        self.assertLess(self.metrics('second', 'train')[0]['loss'], 2.5)

    def test_schedule_command(self):
        """Worked example of the paper's code at LLaMA-124M, and the rates of given losses."""
        self.config({'model': {'n_layer': 12, 'n_head': 12, 'n_kv_head': 12, 'd_model': 768, 'd_ff': 2048,
                               'vocab_size': 50304, 'seq_len': 512},
                     'optimizer': {'preset': 'muon', 'lr': 1e-3}, 'run': {'steps': 1000},
                     'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 3.2}}})
        (self.folder / 'losses').write_text('11.2 10.95\n10,9\n8 7 6.5 6')
        result = self.run_cli('schedule', '--config', 'config.json', '--loss0', '10.95', '--losses',
                              'losses', '--json')
        self.assertEqual(result.status, 0, result.err)
        values = json.loads(result.out)
        self.assertEqual(values['kappa'], 46848)
        self.assertAlmostEqual(values['delta_star'], 2.48856, places=5)
        self.assertAlmostEqual(values['K1'], -136944.63, delta=0.01)
        expected = [9.41293e-6, 1e-5, 1.30269e-5, 1.87265e-5, 3.13974e-5, 7.38324e-5, 1.53138e-4,
                    5.10173e-4]
        for rate, value in zip(values['lr'], expected):
            self.assertAlmostEqual(rate / value, 1, places=5)
        text = self.run_cli('schedule', '--config', 'config.json')
        self.assertIn('delta_star', text.out)

    def test_generate(self):
        self.config({'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'}})
        self.train()
        texts = [self.run_cli('generate', '--checkpoint', self.checkpoint(8), '--prompt', 'Hi',
                              '--tokens', 20, '--seed', seed).out for seed in (1, 1, 2)]
        self.assertTrue(texts[0].startswith('Hi'))
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])

    def test_eval_of_questions(self):
        self.config({'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'}})
        self.train()
        question = {'ind': 7, 'ctx': 'He had', 'endings': ['been', 'a', 'never seen it', '!'], 'label': 1}
        lines = [json.dumps({**question, 'label': label}) for label in range(4)]
        (self.folder / 'questions.jsonl').write_text('\n'.join(lines) + '\n')
        arguments = ('eval', '--checkpoint', self.checkpoint(8), '--data', 'questions.jsonl', '--device', 'cpu')
        result = self.run_cli(*arguments, '--json')
        self.assertEqual(result.status, 0, result.err)
        # One question with each of its endings as the right one.
        self.assertEqual(json.loads(result.out), {'accuracy': 0.25, 'accuracy_norm': 0.25, 'examples': 4})
        self.assertEqual(self.run_cli(*arguments, '--json', '--tokenizer', 'bytes').out, result.out)
        self.assertIn('4 questions\naccuracy 25.00 %, by log-probability per token 25.00 %\n', self.run_cli(*arguments).out)
        (self.folder / 'questions.jsonl').write_text('\n'.join(lines) + '\n{"ctx": "He"}\n')
        result = self.run_cli(*arguments)
        self.assertEqual((result.status, result.err), (1, 'train_gpt: questions.jsonl: line 5: has no "endings"\n'))
        result = self.run_cli('eval', '--checkpoint', self.checkpoint(8), '--data', 'data/val.bin', '--tokenizer', 'bytes')
        self.assertEqual(result.status, 2)

    def test_eval_of_a_hugging_face_folder(self):
        """Untied, grouped heads, another rope_theta: the PyTorch reference's loss (dev/reference/llama.py)."""
        golden = ROOT / 'tests' / 'data' / 'llama_untied_gqa.safetensors'
        content = golden.read_bytes()
        length, = struct.unpack_from('<Q', content)
        header = json.loads(content[8:8 + length])

        def values(name, letter):
            begin, end = (8 + length + offset for offset in header[name]['data_offsets'])
            return struct.unpack(f'<{(end - begin) // struct.calcsize(letter)}{letter}',
                                 content[begin:end])

        folder = self.folder / 'hf'
        folder.mkdir()
        (folder / 'model.safetensors').write_bytes(content)  # more tensors than needed do no harm
        (folder / 'config.json').write_text(json.dumps({
            'model_type': 'llama', 'hidden_size': 16, 'intermediate_size': 20, 'num_hidden_layers': 2,
            'num_attention_heads': 4, 'num_key_value_heads': 2, 'vocab_size': 50,
            'max_position_embeddings': 5, 'rms_norm_eps': 1e-6, 'rope_theta': 500.0,
            'tie_word_embeddings': False}))
        # The reference's logits at each position give the loss of the token that follows.
        tokens, logits, expected = values('tokens', 'i')[:5], values('logits', 'd'), 0.0
        for position in range(4):
            row = logits[50 * position:50 * (position + 1)]
            expected += math.log(sum(map(math.exp, row))) - row[tokens[position + 1]]
        (self.folder / 'row.bin').write_bytes(struct.pack('<5H', *tokens))
        for precision, places in (('fp64', 12), ('fp32', 5)):
            result = self.run_cli('eval', '--checkpoint', 'hf', '--data', 'row.bin', '--json',
                                  '--precision', precision)
            self.assertEqual(result.status, 0, result.err)
            self.assertAlmostEqual(json.loads(result.out)['loss'], expected / 4, places=places)

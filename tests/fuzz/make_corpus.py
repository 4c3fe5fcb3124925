#!/usr/bin/env python3
"""Writes the seeds of tests/fuzz/corpus: good_* have to be accepted, bad_* refused, seed_* only kept promises.

Inputs that a fuzzer found are files of other names beside them, kept as they are.
"""
import json
import pathlib
import struct

CORPUS = pathlib.Path(__file__).resolve().parent / 'corpus'


def write(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


MODEL = {'n_layer': 2, 'n_head': 4, 'd_model': 32, 'd_ff': 64, 'vocab_size': 256, 'seq_len': 16}
CONFIG = {'run': {'steps': 100}, 'model': MODEL, 'data': {'train': 't*.bin', 'val': ['v1.bin', 'v2.bin']},
          'batch': {'sequences': 8}, 'optimizer': {'preset': 'muon', 'lr': 0.001}}
GROUPS = [{'match': {'role': 'matrix', 'name': '*q_proj*'}, 'momentum': {'type': 'nesterov', 'beta': 0.95, 'ema': True},
           'norm': {'type': 'spectral', 'coefficients': [[3.4445, -4.775, 2.0315]], 'steps': 5},
           'radius': '0.2*sqrt(max(m,n))', 'decay': 'decoupled'},
          {'match': {'role': 'any'}, 'momentum': {'type': 'adam', 'beta1': 0.9, 'beta2': 0.99, 'eps_inside': True},
           'norm': {'type': 'none'}, 'decay': {'type': 'decoupled', 'weight_decay': 0.1, 'roles': ['any']},
           'lr_scale': 0.1}]


def merged(base, **changes):
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], **value) if both else value
    return result


def configs():
    write('config', 'good_plain', json.dumps(CONFIG))
    write('config', 'good_groups', json.dumps(merged(CONFIG, optimizer={'preset': None, 'groups': GROUPS})))
    write('config', 'good_adaptive', json.dumps(merged(
        CONFIG, schedule={'warmup': {'type': 'adaptive', 'target_loss': 3.2, 'delta_star': 'exact'},
                          'decay': {'type': 'wsd', 'shape': 'sqrt', 'fraction': 0.3}},
        eval={'every': 5, 'sample': 'It was'}, data={'tokenizer': 'bytes'}, run={'dir': '/tmp/x', 'name': 'a/b'}, precision={'compute': 'bf16'})))
    write('config', 'good_includes', '{"include": ["a.json", "b.json"], "run": {"steps": 7, "name": null}}\n'
          f'@@ a.json\n{json.dumps(CONFIG)}\n@@ b.json\n{{"optimizer": {{"preset": "preset.json"}}}}\n'
          f'@@ preset.json\n{json.dumps({"description": "of ours", "groups": GROUPS})}\n')
    write('config', 'bad_circle', '{"include": "a.json"}\n@@ a.json\n{"include": "b.json"}\n@@ b.json\n'
          '{"include": "x.json"}')
    write('config', 'bad_tree', '{"include": ' + json.dumps(['a.json'] * 3) + '}\n@@ a.json\n{"include": '
          + json.dumps(['b.json'] * 3) + '}\n@@ b.json\n{}')
    write('config', 'bad_deep', '{"a":' * 200 + '1' + '}' * 200)
    write('config', 'bad_escape', json.dumps({'run': {'name': '\x1b[2J\u009b2J\u202e'}, '\x1b]0;': '\x7f'}))
    write('config', 'bad_long_key', json.dumps({'a' * 200: {'b' * 200: {'c': 1}}}))
    write('config', 'bad_long_file_name', json.dumps(merged(CONFIG, optimizer={'preset': 'x' * 300 + '.json'})))
    write('config', 'bad_run_name_leads_out', json.dumps(merged(CONFIG, run={'name': '../../outside'})))
    for name, number in (('bad_overflow', '1e999'), ('bad_2_63', '9223372036854775808'), ('bad_minus_0', '-0'),
                         ('bad_half', '0.5')):
        write('config', name, json.dumps(merged(CONFIG, run={'steps': 4711})).replace('4711', number))
    for name, texts in {'good_none': '', 'good_several': 'optimizer.lr=1e-3\nrun.name=second\nbatch={"sequences": 2}\n'
                        'schedule.warmup={"type": "linear", "steps": 3}', 'good_null': 'run.dir=null',
                        'bad_path': 'a..b=1', 'bad_include': 'include=x.json', 'bad_utf8': 'run.name=\udcff',
                        'bad_deep': '.'.join('a' * 100) + '=1', 'bad_key': 'optimiser.\x1b[31mlr=[[[1]]]',
                        'good_groups': 'optimizer.groups=' + json.dumps(GROUPS)}.items():
        write('overrides', name, texts.encode(errors='surrogateescape'))


def tensor_file(header, data=b''):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(',', ':')).encode()
    return struct.pack('<Q', len(text)) + text + data


def entry(dtype, shape, begin, end):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


def tensors():
    types = [('F64', 8), ('F32', 4), ('F16', 2), ('BF16', 2), ('I32', 4), ('U16', 2)]
    header, at = {'__metadata__': {'format': 'pt'}}, 0
    for dtype, size in types:
        header[f'w.{dtype}'] = entry(dtype, [3, 1], at, at + 3 * size)
        at += 3 * size
    write('safetensors', 'good_types', tensor_file(header, bytes(range(at))))
    write('safetensors', 'good_empty', tensor_file({}))
    write('safetensors', 'good_no_elements', tensor_file({'e': entry('F32', [0, 7], 0, 0), 'w': entry('F32', [], 0, 4)},
                                                         b'abcd'))
    write('safetensors', 'seed_other_type', tensor_file({'m': entry('BOOL', [2], 0, 2)}, b'ab'))
    for name, header in {
            'bad_overlap': {'a': entry('F32', [1], 0, 4), 'b': entry('F32', [1], 0, 4)},
            'bad_gap': {'a': entry('F32', [1], 4, 8)},
            'bad_rest': {'a': entry('F32', [1], 0, 4)},
            'bad_product': {'a': entry('F32', [1 << 32, 1 << 32], 0, 8)},
            'bad_product_right': {'a': entry('F32', [(1 << 62) + 2], 0, 8)},
            'bad_minus_0': b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,8]}}',
            'bad_twice': b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                         b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            'bad_deep': b'{"a":{"dtype":"F32","shape":' + b'[' * 500 + b']' * 500 + b',"data_offsets":[0,8]}}',
            'bad_escape': {'\x1b[2J\x7f\u009b': entry('F32', [3], 0, 8)}}.items():
        write('safetensors', name, tensor_file(header, b'12345678'))
    write('safetensors', 'bad_length', struct.pack('<Q', (1 << 64) - 1) + b'{}')

    index = 'model.safetensors.index.json'
    write('shards', 'good_two', json.dumps({'metadata': {'total_size': 8},
                                            'weight_map': {'a': 'one.safetensors', 'b': 'two.safetensors'}}))
    write('shards', 'good_promise', json.dumps({'weight_map': {'z': 'one.safetensors'}}))
    for name, shard in (('up', '../one.safetensors'), ('absolute', '/etc/passwd'), ('nul', 'one.safetensors\0'),
                        ('text', 'text.safetensors'), ('itself', index), ('dot', '.'), ('number', 3),
                        ('escape', '\x1b[2J'), ('missing', 'three.safetensors'), ('nothing', '')):
        write('shards', f'bad_{name}', json.dumps({'weight_map': {'a': shard}}))
    write('shards', 'bad_deep', '{"weight_map": {"a": ' + '[' * 500 + ']' * 500 + '}}')
    write('shards', 'bad_twice', '{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')


SCHEDULE = {'started': True, 'loss0': 5.5, 'delta0': 2.3, 'delta_star': 0.5, 'smoothed_loss': 4.1, 'previous_loss': 4.0,
            'switched_at': -1, 'peak': 0.0}
DATA = {'sampled': False, 'files': [{'path': 'a.bin', 'bytes': 8000, 'xxh3_128': '0' * 32}]}
STATE = {'format': 1, 'updates': 8, 'samples': 64, 'train_sequences': 249, 'data': {'train': DATA, 'val': DATA},
         'schedule': SCHEDULE,
         'seeds': {'run': 0, 'data': 1337}, 'compute': 'float32', 'config': CONFIG}
# XXH3-128 of the files that tests/fuzz/checkpoint.cpp writes, by xxh128sum.
FILES = {'config.json': {'bytes': 3, 'xxh3_128': '7809095c382d5f77daa13e4f205dc5ba'},
         'model.safetensors': {'bytes': 5, 'xxh3_128': '04ee436e0ebbb533bcfba3fcf40ae9bd'},
         'optimizer.safetensors': {'bytes': 0, 'xxh3_128': '99aa06d3014798d86001c324468d497f'},
         'state.json': {'bytes': 0, 'xxh3_128': '99aa06d3014798d86001c324468d497f'}}


def checkpoints():
    manifest = {'format': 1, 'step': 8, 'files': FILES}
    write('checkpoint', 'good_manifest', json.dumps(manifest))
    write('checkpoint', 'good_state', '{}\n@@ state.json\n' + json.dumps(STATE))
    write('checkpoint', 'bad_format', json.dumps(merged(manifest, format=2)))
    write('checkpoint', 'bad_sum', json.dumps(merged(manifest, files={'model.safetensors': {'xxh3_128': '0' * 32}})))
    write('checkpoint', 'bad_path', json.dumps(merged(manifest, files={'../../x': {'bytes': 0, 'xxh3_128': ''}})))
    write('checkpoint', 'bad_escape', json.dumps(merged(manifest, files={'\x1b[2J': {'bytes': 0, 'xxh3_128': ''}})))
    write('checkpoint', 'bad_deep', '[' * 500)
    for name, changes in {'negative': {'updates': -1}, 'huge': {'updates': 1e300}, 'beyond': {'samples': 2 ** 63},
                          'text': {'train_sequences': '9'}, 'no_schedule': {'schedule': None},
                          'null_loss': {'schedule': {'loss0': None}}, 'list': {'schedule': [1]}, 'data': {'data': {'val': 3}},
                          'data_files': {'data': {'val': {'files': [{'bytes': 1e300}]}}},
                          'half': {'schedule': {'switched_at': 0.5}}}.items():
        write('checkpoint', f'bad_state_{name}', '{}\n@@ state.json\n' + json.dumps(merged(STATE, **changes)))
    write('checkpoint', 'bad_state_config', '{}\n@@ state.json\n{"config": [{"data": 3}]}')


def token_files():
    def shard(count, values, magic=20240520, version=1):
        return struct.pack('<256i', magic, version, count, *[0] * 253) + struct.pack(f'<{len(values)}H', *values)

    walk = [i * 7 % 1000 for i in range(20)]
    write('tokens', 'good_llmc', shard(20, walk))
    write('tokens', 'good_uint16', struct.pack('<20H', *walk))
    write('tokens', 'seed_large_ids', struct.pack('<9H', *range(995, 1004)))
    write('tokens', 'bad_odd', b'\1\2\3')
    write('tokens', 'bad_empty', b'')
    write('tokens', 'bad_llama3', shard(20, [60000] * 20, 20240801, 7))
    write('tokens', 'bad_short', struct.pack('<2H', 1, 2))
    write('tokens', 'seed_negative_count', shard(-1, walk))
    write('tokens', 'seed_huge_count', shard(2 ** 31 - 1, walk))
    write('tokens', 'seed_version', shard(20, walk, version=2))


def vocabularies():
    write('vocabulary', 'good_ranks', 'dGg= 256\ndGhl 257\nIHQ= 258\nCgo= 259\n')
    write('vocabulary', 'good_merges', '@@ merges\n#version: 0.2\nt h\nth e\n\u0120 t\n@@ ids\n'
          '"th":256,"the":257,"\u0120t":258,"<|endoftext|>":259')
    write('vocabulary', 'seed_gap', '@@ ids\n"th":262143')
    write('vocabulary', 'bad_all', '!\n@@ all ids\n{"a": 0}')
    write('vocabulary', 'bad_huge_rank', '!!!! 0\nIQ== 99999999\n@@ all ids\n{"a": 99999999, "b": 1e300}')
    write('vocabulary', 'bad_long_token', 'QUJD' * 200 + ' 256\n@@ ids\n"' + 'a' * 600 + '":256')
    write('vocabulary', 'bad_twice', 'dGg= 256\ndGg= 257\n@@ ids\n"th":256,"th":257')
    write('vocabulary', 'bad_merge', 'dGg= 3\n@@ merges\nq q\n@@ ids\n"th":256')
    write('vocabulary', 'bad_escape', '\x1b[2J 256\n@@ merges\n\x1b[2J \x1b[2J\n@@ ids\n"\\u001b[2J":-1')
    write('vocabulary', 'bad_deep', '!\n@@ all ids\n{"a": ' + '[' * 500 + ']' * 500 + '}')


HF = {'model_type': 'llama', 'hidden_act': 'silu', 'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
      'num_attention_heads': 4, 'num_key_value_heads': 2, 'vocab_size': 256, 'max_position_embeddings': 16,
      'rms_norm_eps': 1e-5, 'rope_theta': 10000.0, 'tie_word_embeddings': False}


def hugging_face():
    write('hf_config', 'good_plain', json.dumps(HF))
    write('hf_config', 'good_new', json.dumps(merged(HF, rope_theta=None, head_dim=8, attention_bias=False, rope_parameters={
        'rope_type': 'default', 'rope_theta': 5e5})))
    for name, changes in {'scaled': {'rope_scaling': {'type': 'linear', 'factor': 2}}, 'layers': {
            'num_hidden_layers': 1 << 24}, 'minus': {'hidden_size': -32}, 'beyond': {'vocab_size': 2 ** 63},
            'head': {'head_dim': 9}, 'kind': {'model_type': '\x1b[2Jgpt'}, 'eps': {'rms_norm_eps': 0},
            'divides': {'num_attention_heads': 3}, 'bias': {'mlp_bias': True}}.items():
        write('hf_config', f'bad_{name}', json.dumps(merged(HF, **changes)))
    write('hf_config', 'bad_deep', '{"model_type":' + '[' * 500 + ']' * 500 + '}')
    write('hf_config', 'bad_twice', '{"hidden_size": 32, "hidden_size": 64}')


def logs():
    lines = [{'type': 'schedule', 'kappa': 1.5}] + [{'type': 'train', 'step': i, 'loss': 5.5} for i in range(8)]
    lines += [{'type': 'val', 'step': 5, 'loss': 5.0}, {'type': 'summary', 'steps': 8}]
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    write('metrics', 'good_log', text)
    write('metrics', 'good_torn', text + '{"type": "tra')
    write('metrics', 'good_other_lines', '[1]\n3\n"x"\n\n{}\n{"type": 3}\n{"step": 1e300}\n{"step": -1}\n' + text)
    write('metrics', 'seed_deep', '[' * 500 + '\n')


if __name__ == '__main__':
    for part in (configs, tensors, checkpoints, token_files, vocabularies, hugging_face, logs):
        part()

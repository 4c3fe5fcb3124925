#!/usr/bin/env python3
"""Checks the CUDA kernels of llmc/cuda without a GPU. Each failure is one line; exit status 1 if there is one.

    tests/check_kernels.py lint               the rules at the top of llmc/cuda/common.cuh, in the source
    tests/check_kernels.py coverage FILE...   every kernel, and every place that launches one, was executed: FILE
                                              is what programs under the emulator wrote to LMO_EMULATOR_LOG
    tests/check_kernels.py budgets BUILD      registers, shared memory, stack and spills of every kernel as ptxas
                                              printed them, against dev/kernel_budgets.json
    tests/check_kernels.py ptx BUILD          kernels that shall move 16 bytes at a time or use tensor cores do,
                                              and none uses local memory; reads BUILD/cuda/llmc/cuda/*.ptx
    tests/check_kernels.py write BUILD        writes dev/kernel_budgets.json anew from the same files

Standard library only; c++filt of binutils makes names readable.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
KERNELS = ROOT / 'llmc' / 'cuda'
BUDGETS = ROOT / 'dev' / 'kernel_budgets.json'


def kernel_files():
    return sorted([*KERNELS.glob('*.cu'), *KERNELS.glob('*.cuh')])


# ---- the source -----------------------------------------------------------------------------------

TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)


def without_comments(text, keep_strings=False):
    """The code alone, with every line where it was; strings become empty unless they are kept."""
    def replace(match):
        token = match.group()
        if token[0] in '"\'':
            return token if keep_strings else token[0] * 2
        return '\n' * token.count('\n') or ' '
    # Digit separators (1'000) are no characters.
    return TOKEN.sub(replace, re.sub(r"(?<=\d)'(?=\d)", '', text))


def line_of(code, offset):
    return code.count('\n', 0, offset) + 1


def balanced(code, start):
    """The offset behind the parenthesis that closes the one at `start`."""
    depth = 0
    for at in range(start, len(code)):
        depth += {'(': 1, ')': -1}.get(code[at], 0)
        if depth == 0:
            return at + 1
    return len(code)


def kernel_definitions(code):
    """(name, offset) of each __global__ function with a body."""
    for match in re.finditer(r'__global__', code):
        at = match.end()
        while True:
            word = re.compile(r'\s*(\w+)\s*').match(code, at)
            if not word:
                break
            at = word.end()
            if word.group(1) == '__launch_bounds__' and code[at] == '(':
                at = balanced(code, at)
            elif code[at:at + 1] == '(':
                end = balanced(code, at)
                if code[end:].lstrip().startswith('{'):
                    yield word.group(1), match.start()
                break


# Rule, files that may break it, what it means.
RULES = [
    (r'<<<', (), 'launch by <<<>>>; use launch(LMO_KERNEL(name), ...)'),
    (r'\b__shared__\b', ('common.cuh',), 'raw __shared__; use LMO_SHARED or LMO_DYNAMIC_SHARED'),
    (r'\basm\b', ('ptx.cuh', 'hopper.cuh', 'dependent_launch.cuh'), 'PTX outside ptx.cuh and hopper.cuh'),
    (r'\b__activemask\b', (), '__activemask has no defined meaning; name the lanes'),
    (r'\bcooperative_groups\b', (), 'cooperative groups are not part of the dialect'),
    (r'\b__CUDA_ARCH__\b', ('dependent_launch.cuh',), 'a path chosen by the preprocessor is not tested; use a template parameter'),
    (r'\b(?:malloc|calloc|realloc|free)\s*\(|(?<!::)\bnew\b(?!_)', (), 'memory is the backend\'s; no malloc, no new'),
    (r'\bprintf\s*\(', (), 'printf in a kernel file'),
    (r'\bstd::(?:jthread|thread|mutex|atomic)\b|\bpthread_', (), 'threads of the host in a kernel file'),
    (r'\breinterpret_cast<\s*(?:const\s+)?(?:u?int|float|double|u?longlong|u?short)[248]\s*(?:const\s*)?\*',
     ('common.cuh', 'ptx.cuh', 'hopper.cuh'), 'a wide access by hand; use load, store and Vector'),
    (r'(?<!asm )\bvolatile\b', ('ptx.cuh', 'hopper.cuh', 'dependent_launch.cuh'), 'volatile: no block may wait for another one'),
]


def lint(files):
    sources = {path: without_comments(path.read_text()) for path in files}
    where = {}
    for path, code in sources.items():
        for pattern, allowed, meaning in RULES:
            if path.name in allowed:
                continue
            for match in re.finditer(pattern, code):
                yield f'{place(path)}:{line_of(code, match.start())}: {meaning}'
        for number, line in enumerate(code.split('\n'), 1):
            if len(re.findall(r'\b__sync\w+\(', line)) > 1:
                yield f'{place(path)}:{number}: two barriers on one line; the emulator tells them apart by their lines'
        for name, offset in kernel_definitions(code):
            here = f'{place(path)}:{line_of(code, offset)}'
            if not name.endswith('_kernel'):
                yield f'{here}: kernel {name}: the name has to end in _kernel'
            if name in where:
                yield f'{here}: kernel {name} has the name of another one ({where[name]}); give it another'
            where[name] = here
            end = code.find('\n}', offset)
            before, waits, after = code[offset:end].partition('\n    wait_for_previous();')
            if not waits or '\n    wait_for_previous();' in after or re.search(r'\breturn\b', before):
                yield f'{here}: kernel {name}: every thread has to call wait_for_previous(), once, in no branch'
    everything = '\n'.join(sources.values())
    for name, here in where.items():
        if len(re.findall(rf'\b{name}\b', everything)) < 2:
            yield f'{here}: kernel {name} is launched by nobody'
    if not where:
        yield 'no kernels found in llmc/cuda'


def place(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


# ---- what was executed ----------------------------------------------------------------------------


def launch_sites(code):
    """(name as the emulator logs it, offset) of each launch."""
    for match in re.finditer(r'\bLMO_KERNEL(?=\()', code):
        line = code[code.rfind('\n', 0, match.start()) + 1:match.start()]
        if '#define' not in line:
            text = code[match.end() + 1:balanced(code, match.end()) - 1]
            yield ' '.join(text.split()), match.start()
    for match in re.finditer(r'\blaunch\(\s*"([^"]+)"', code):
        yield match.group(1), match.start()


def coverage(files, logs):
    executed = set()
    for log in logs:
        executed |= set(pathlib.Path(log).read_text().split('\n')) - {''}
    names = {re.match(r'\w+', name).group() for name in executed if re.match(r'\w+', name)}
    for path in files:
        code = without_comments(path.read_text(), keep_strings=True)
        missing = [name for name, _ in kernel_definitions(code) if name not in names]
        for name in missing:
            yield f'{place(path)}: kernel {name} was never executed'
        for site, offset in launch_sites(code):
            if site not in executed and re.match(r'\w+', site).group() in names:
                yield f'{place(path)}:{line_of(code, offset)}: {site} was never executed'


# ---- what nvcc made of it -------------------------------------------------------------------------


def demangle(names):
    names = sorted(names)
    if not names:
        return {}
    output = subprocess.run(['c++filt'], input='\n'.join(names), capture_output=True, text=True, check=True).stdout
    return {name: short_name(text) for name, text in zip(names, output.split('\n'))}


def short_name(text):
    """`void lmo::cuda::(anonymous namespace)::f_kernel<float, 4>(...)` becomes `f_kernel<float, 4>`."""
    for part in ('lmo::cuda::', '(anonymous namespace)::'):
        text = text.replace(part, '')
    for there, here in (('__nv_bfloat16', 'bf16'), ('__half', 'fp16'), ('unsigned short', 'uint16'),
                        ('unsigned int', 'uint32'), ('(bool)1', 'true'), ('(bool)0', 'false'), ('> >', '>>'),
                        ('> >', '>>')):
        text = text.replace(there, here)
    text = re.sub(r'\(int\)(-?\d+)', r'\1', text)
    depth = 0
    for at, letter in enumerate(text):  # up to the parameters
        depth += {'<': 1, '>': -1}.get(letter, 0)
        if letter == '(' and depth == 0:
            text = text[:at]
            break
    return text.removeprefix('void ').strip()


STACK = re.compile(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads')


def ptxas_reports(build):
    """{'FILE KERNEL': {architecture: {registers, shared, stack, spills}}}"""
    found = []
    for path in sorted((pathlib.Path(build) / 'cuda' / 'llmc' / 'cuda').glob('*.ptxas')):
        kernel = architecture = None
        for line in path.read_text().split('\n'):
            if match := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
                kernel, architecture = match.groups()
                found.append((path.stem, kernel, architecture, {}))
            elif kernel and (match := STACK.search(line)):
                if 'stack' not in found[-1][3]:
                    found[-1][3].update(stack=int(match.group(1)), spills=int(match.group(2)) + int(match.group(3)))
            elif kernel and (match := re.search(r'Used (\d+) registers', line)):
                shared = re.search(r'(\d+) bytes smem', line)
                found[-1][3].update(registers=int(match.group(1)), shared=int(shared.group(1)) if shared else 0)
                kernel = None
    names = demangle({kernel for _, kernel, _, _ in found})
    reports = {}
    for stem, kernel, architecture, numbers in found:
        reports.setdefault(f'{stem}.cu {names[kernel]}', {})[architecture] = numbers
    return reports


WIDE = r'\.(?:v4\.[busf]32|v2\.[busf]64|v8\.[busf]16|b128)'
WIDE_LOAD = re.compile(r'\bld(?:\.[\w:]+)*?' + WIDE + r'|\bcp\.async\.cg\.shared\.global|\bcp\.async\.bulk\.tensor\.\dd\.shared')
WIDE_STORE = re.compile(r'\bst(?:\.[\w:]+)*?' + WIDE + r'|\bcp\.async\.bulk\.tensor\.\dd\.global')
OTHER_SPACE = re.compile(r'\b(?:ld|st)\.(?:param|shared|const|local)')
TENSOR_CORES = re.compile(r'\b(?:mma\.sync|wgmma\.mma_async)')
LOCAL_MEMORY = 'local memory'
LOCAL = re.compile(r'\b(?:ld|st)\.local')
WAITS, AN_ACCESS = 'a wait for the kernels ahead', 'an access'
TOUCHES = re.compile(r'\b(?:ld|ldu|st|red|atom|cp)\.')


def ptx_facts(body):
    """What the instructions of one kernel show: a set of words."""
    facts = set()
    for line in body.split('\n'):
        if 'griddepcontrol.wait' in line and AN_ACCESS not in facts:
            facts.add(WAITS)
        if TOUCHES.search(line) and not OTHER_SPACE.search(line):
            facts.add(AN_ACCESS)
        if TENSOR_CORES.search(line):
            facts.add('tensor cores')
        if LOCAL.search(line):
            facts.add(LOCAL_MEMORY)
        if OTHER_SPACE.search(line):
            continue
        if WIDE_LOAD.search(line):
            facts.add('wide loads')
        if WIDE_STORE.search(line):
            facts.add('wide stores')
    return facts


def ptx_reports(build):
    """{'FILE KERNEL': facts}"""
    found = []
    for path in sorted((pathlib.Path(build) / 'cuda' / 'llmc' / 'cuda').glob('*.ptx')):
        # Up to the next function: assembler in the source has braces of its own.
        for match in re.finditer(r'\.entry (\w+)\((.*?)(?=\.entry |\.func |\Z)', path.read_text(), re.DOTALL):
            found.append((path.stem, match.group(1), ptx_facts(match.group(2))))
    names = demangle({kernel for _, kernel, _ in found})
    return {f'{stem}.cu {names[kernel]}': facts for stem, kernel, facts in found}


# ---- the table ------------------------------------------------------------------------------------


def compiler_version():
    """Of the nvcc in use, major.minor; other versions allot registers differently."""
    nvcc = os.environ.get('LMO_NVCC') or 'nvcc'
    try:
        text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
    except OSError:
        return ''
    match = re.search(r'release (\d+\.\d+)', text)
    return match.group(1) if match else ''


def read_table():
    return json.loads(BUDGETS.read_text())


def missing_sources(build, suffix):
    """Kernel files for which there is nothing to check."""
    folder = pathlib.Path(build) / 'cuda' / 'llmc' / 'cuda'
    for path in sorted(KERNELS.glob('*.cu')):
        made = folder / f'{path.stem}{suffix}'
        if not made.exists():
            yield f'{made} is missing: compile {place(path)} first'


def budgets(build):
    yield from missing_sources(build, '.ptxas')
    table, reports = read_table(), ptxas_reports(build)
    strict = compiler_version() in ('', table['nvcc'])
    if not strict:
        print(f'registers not compared: the table is of nvcc {table["nvcc"]}')
    for kernel, by_architecture in reports.items():
        entry = table['kernels'].get(kernel)
        if entry is None:
            yield f'{kernel}: not in {place(BUDGETS)} (tests/check_kernels.py write BUILD adds it)'
        for architecture, numbers in by_architecture.items():
            yield from over_budget(f'{kernel}, {architecture}', numbers, (entry or {}).get(architecture), strict)
    built = {path.stem for path in (pathlib.Path(build) / 'cuda' / 'llmc' / 'cuda').glob('*.ptxas')}
    for kernel in table['kernels']:
        if kernel not in reports and kernel.split('.cu ')[0] in built:
            yield f'{kernel}: in {place(BUDGETS)} but no longer compiled'


def over_budget(what, numbers, budget, strict):
    if numbers.get('spills'):
        yield f'{what}: {numbers["spills"]} bytes of spills'
    stack = (budget or {}).get('stack', 0)
    if numbers.get('stack', 0) > stack:
        yield f'{what}: a stack frame of {numbers["stack"]} bytes, allowed are {stack}'
    if budget is None:
        return
    if strict and numbers['registers'] > budget['registers']:
        yield f'{what}: {numbers["registers"]} registers, allowed are {budget["registers"]}'
    if numbers['shared'] > budget['shared']:
        yield f'{what}: {numbers["shared"]} bytes of shared memory, allowed are {budget["shared"]}'


def ptx(build):
    yield from missing_sources(build, '.ptx')
    table, reports = read_table(), ptx_reports(build)
    for kernel, facts in reports.items():
        entry = table['kernels'].get(kernel)
        if entry is None:
            yield f'{kernel}: not in {place(BUDGETS)} (tests/check_kernels.py write BUILD adds it)'
            continue
        for fact in entry['ptx']:
            if fact not in facts:
                yield f'{kernel}: the PTX shows no {fact} any more'
        if WAITS not in facts:
            yield f'{kernel}: the PTX has no griddepcontrol.wait before its first access to global memory'
        if LOCAL_MEMORY in facts:
            yield f'{kernel}: the PTX uses local memory (ld.local, st.local)'


def write(build):
    yield from missing_sources(build, '.ptxas')
    yield from missing_sources(build, '.ptx')
    reports, facts = ptxas_reports(build), ptx_reports(build)
    lines = []
    for kernel, by_architecture in sorted(reports.items()):
        entry = {}
        for architecture, numbers in sorted(by_architecture.items()):
            if numbers['spills']:
                yield f'{kernel}, {architecture}: {numbers["spills"]} bytes of spills; never allowed'
            stack = ['stack'] if numbers['stack'] and not numbers['spills'] else []
            keep = ['registers', 'shared', *stack]
            entry[architecture] = {key: numbers[key] for key in keep}
        entry['ptx'] = sorted(facts.get(kernel, set()) - {LOCAL_MEMORY, WAITS, AN_ACCESS})
        lines.append(f'    {json.dumps(kernel)}: {json.dumps(entry)}')
    note = ('Registers, static shared memory and stack that each kernel may have, and what its PTX has to show. '
            'Written by tests/check_kernels.py write BUILD; look at the difference before it is committed.')
    BUDGETS.write_text('{\n' + f'  "note": {json.dumps(note)},\n  "nvcc": {json.dumps(compiler_version())},\n'
                       + '  "kernels": {\n' + ',\n'.join(lines) + '\n  }\n}\n')
    print(f'{place(BUDGETS)}: {len(lines)} kernels')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('lint', 'coverage', 'budgets', 'ptx', 'write'))
    parser.add_argument('paths', nargs='*', help='logs of executed kernels, or the build folder')
    arguments = parser.parse_args()
    if arguments.what == 'lint':
        failures = list(lint(kernel_files()))
    elif arguments.what == 'coverage':
        failures = list(coverage(kernel_files(), arguments.paths))
    else:
        check = {'budgets': budgets, 'ptx': ptx, 'write': write}[arguments.what]
        failures = list(check(arguments.paths[0] if arguments.paths else ROOT / 'build'))
    print('\n'.join(failures) if failures else f'{arguments.what}: nothing to complain about')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())

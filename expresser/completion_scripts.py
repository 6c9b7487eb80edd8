"""Scripts that complete the command line in bash, zsh and fish. They hold every option, so that pressing TAB starts no Python."""

from collections.abc import Sequence

from expresser import __version__
from expresser.completion import Form, Option

_HEAD = """\
# Completion of expresser {version} for {shell}, written by `expresser completion {shell}`. It holds all commands and options, so write
# it anew after an update:
{how}
"""
_HOW = {
    "bash": """\
#   mkdir -p ~/.local/share/bash-completion/completions
#   expresser completion bash > ~/.local/share/bash-completion/completions/expresser
# Where the package bash-completion is missing (macOS), source that file in ~/.bashrc.""",
    "zsh": """\
#   mkdir -p ~/.zfunc && expresser completion zsh > ~/.zfunc/_expresser
# and once, in ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit && compinit""",
    "fish": """\
#   expresser completion fish > ~/.config/fish/completions/expresser.fish""",
}


def script(shell: str, forms: Sequence[Form]) -> str:
    """The script for bash, zsh or fish.

    Parameters
    ----------
    forms
        Of the whole command line, the start of the line first: `completion.forms()`.
    """
    head = _HEAD.format(version=__version__, shell=shell, how=_HOW[shell])
    body = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](forms)
    return f"#compdef expresser\n{head}{body}" if shell == "zsh" else f"{head}{body}"


def _quoted(text: str) -> str:
    """In single quotes, for bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _spellings(options: Sequence[Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


# --- bash: 3.2 (macOS) has neither associative arrays nor compopt ------------------------------------------------------------

_BASH = """\
_expresser_form() { # what may follow the words $1
  verbs= flags= files= texts= chosen= choices= many=
  case $1 in
@@ARMS@@
  esac
}

_expresser() {
  local cur=${COMP_WORDS[COMP_CWORD]} at= last= since=0 i=1 word values
  local verbs flags files texts chosen choices many
  [[ $cur == '=' ]] && cur= # --option=value comes as three words
  COMPREPLY=()
  _expresser_form ''
  while ((i < COMP_CWORD)) && [[ " $verbs " == *" ${COMP_WORDS[i]} "* ]]; do
    at+=" ${COMP_WORDS[i]}"
    _expresser_form "$at"
    ((i += 1))
  done
  if [[ -n $verbs ]]; then
    ((i == COMP_CWORD)) && COMPREPLY=($(compgen -W "$verbs --help" -- "$cur"))
    return
  fi
  while ((i < COMP_CWORD)); do # the option before the cursor, and the values it has
    word=${COMP_WORDS[i]}
    if [[ $word == -[!0-9]* ]]; then
      last=$word since=0
    elif [[ $word != '=' ]]; then
      ((since += 1))
    fi
    ((i += 1))
  done
  if [[ $cur == -* ]]; then
    COMPREPLY=($(compgen -W "$flags $files $texts $chosen" -- "$cur"))
    return
  fi
  if [[ -n $last && " $flags " != *" $last "* ]] && { ((since == 0)) || [[ " $many " == *" $last "* ]]; }; then
    for word in $choices; do
      if [[ $word == "$last="* ]]; then
        values=${word#*=}
        COMPREPLY=($(compgen -W "${values//,/ }" -- "$cur"))
        return
      fi
    done
    [[ " $files " == *" $last "* ]] || return
  fi
  compopt -o filenames 2>/dev/null
  local IFS=$'\\n'
  COMPREPLY=($(compgen -f -- "$cur"))
}

complete -F _expresser expresser
"""


def _bash(forms: Sequence[Form]) -> str:
    arms = []
    for form in forms:
        said = {"verbs": " ".join(form.verbs)} if form.verbs else _kinds(form.options)
        sets = " ".join(f"{name}={_quoted(value)}" for name, value in said.items() if value)
        arms.append(f"    {_quoted(''.join(f' {word}' for word in form.words))}) {sets} ;;")
    return _BASH.replace("@@ARMS@@", "\n".join(arms))


def _kinds(options: Sequence[Option]) -> dict[str, str]:
    """Options by what they take: nothing, a file, something else, one of some words; and those that take several."""
    plain = [option for option in options if not option.choices]
    return {
        "flags": _spellings([o for o in plain if o.values == 0]),
        "files": _spellings([o for o in plain if o.files]),
        "texts": _spellings([o for o in plain if o.values != 0 and not o.files]),
        "chosen": _spellings([o for o in options if o.choices]),
        "choices": " ".join(f"{flag}={','.join(o.choices)}" for o in options if o.choices for flag in o.flags),
        "many": _spellings([o for o in options if o.values is None]),
    }


# --- zsh ---------------------------------------------------------------------------------------------------------------------

_ZSH = """_expresser_form() { # what may follow the words $1; name:summary
  verbs=() options=()
  flags= files= texts= chosen= choices= many=
  case $1 in
@@ARMS@@
  esac
}

_expresser() {
  local at last since=0 i=2 word flags files texts chosen choices many
  local -a verbs options
  _expresser_form ''
  while (( i < CURRENT )) && (( ${verbs[(I)${words[i]}:*]} )); do
    at+=" ${words[i]}"
    _expresser_form "$at"
    (( i++ ))
  done
  if (( $#verbs )); then
    (( i == CURRENT )) && _describe -t commands command verbs
    return
  fi
  while (( i < CURRENT )); do # the option before the cursor, and the values it has
    word=${words[i]}
    if [[ $word == -[^0-9]* ]]; then
      last=$word since=0
    else
      (( since++ ))
    fi
    (( i++ ))
  done
  if [[ $PREFIX == --*=* ]]; then # --option=value
    last=${PREFIX%%=*} since=0
    compset -P '*='
  elif [[ $PREFIX == -* ]]; then
    _describe -t options option options
    return
  fi
  if [[ -n $last && " $flags " != *" $last "* ]] && { (( since == 0 )) || [[ " $many " == *" $last "* ]] }; then
    for word in ${=choices}; do
      if [[ $word == "$last="* ]]; then
        compadd -- ${(s:,:)word#*=}
        return
      fi
    done
    if [[ " $files " != *" $last "* ]]; then
      _message 'value'
      return
    fi
  fi
  _files
}

if [[ $funcstack[1] == _expresser ]]; then # loaded by name from fpath
  _expresser "$@"
else
  compdef _expresser expresser
fi
"""


def _zsh(forms: Sequence[Form]) -> str:
    summaries = {form.words: form.summary for form in forms}
    arms = []
    for form in forms:
        listed = [(verb, summaries[(*form.words, verb)]) for verb in form.verbs]
        offered = [(flag, option.summary) for option in form.options for flag in option.flags]
        lines = [f"{name}=({_described(pairs)})" for name, pairs in (("verbs", listed), ("options", offered)) if pairs]
        lines += [f"{name}={_quoted(value)}" for name, value in _kinds(form.options).items() if value]
        arms.append(
            f"    {_quoted(''.join(f' {word}' for word in form.words))})\n      " + "\n      ".join(lines) + " ;;"
        )
    return _ZSH.replace("@@ARMS@@", "\n".join(arms))


def _described(pairs: Sequence[tuple[str, str]]) -> str:
    return " ".join(_quoted(f"{name.replace(':', chr(92) + ':')}:{summary}") for name, summary in pairs)


# --- fish --------------------------------------------------------------------------------------------------------------------

_FISH = """\
function __expresser_exactly # whether the words before the cursor are these
    set -l given (commandline -opc)
    test "$given[2..]" = "$argv"
end

function __expresser_at # whether the line begins with these words
    set -l given (commandline -opc)
    test (count $given) -gt (count $argv); or return 1
    test "$given[2..$(math (count $argv) + 1)]" = "$argv"
end

"""


def _fish(forms: Sequence[Form]) -> str:
    lines = []
    summaries = {form.words: form.summary for form in forms}
    for form in forms:
        at = (
            f"-n '__expresser_exactly {' '.join(form.words)}'"
            if form.verbs
            else f"-n '__expresser_at {' '.join(form.words)}'"
        )
        lines += [
            f"complete -c expresser -f {at} -a {verb} -d {_fish_quoted(summaries[(*form.words, verb)])}"
            for verb in form.verbs
        ]
        lines += [
            f"complete -c expresser {at} -l {flag.removeprefix('--')} {_fish_values(option)} -d {_fish_quoted(option.summary)}"
            for option in form.options
            for flag in option.flags
            if flag.startswith("--")
        ]
    return _FISH + "\n".join(lines) + "\n"


def _fish_values(option: Option) -> str:
    if option.choices:
        return f"-x -a '{' '.join(option.choices)}'"
    if option.files:
        return "-r -F"
    return "" if option.values == 0 else "-x"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

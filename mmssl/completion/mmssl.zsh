#compdef mmssl
# Completion of mmssl in zsh: a file called _mmssl in a folder of $fpath, or sourced after compinit.

_mmssl() {
    local -a before whole open
    local line kind value help
    local program=${~${(Q)words[1]}}
    before=("${(@Q)words[2,CURRENT-1]}")
    (( CURRENT > 2 )) || before=()
    for line in "${(@f)$(_MMSSL_COMPLETE=zsh $program "${before[@]}" "${(Q)PREFIX}" 2> /dev/null)}"; do
        IFS=$'\t' read -r kind value help <<< $line
        case $kind in
            (done) whole+=("${value//:/\\:}:$help") ;;
            (open) open+=("${value//:/\\:}:$help") ;;
            (files) [[ -n $value ]] && compset -P '*='; _files ;;
        esac
    done
    (( $#whole )) && _describe -t whole mmssl whole
    (( $#open )) && _describe -t open mmssl open -S ''
}

if [[ $funcstack[1] == _mmssl ]]; then
    _mmssl "$@"
else
    compdef _mmssl mmssl
fi

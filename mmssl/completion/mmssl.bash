# Completion of mmssl in bash: source this file.

_mmssl() {
    local kind reply help
    COMPREPLY=()
    while IFS=$'\t' read -r kind reply help; do
        case $kind in
            done) COMPREPLY+=("$reply") ;;
            open)
                COMPREPLY+=("$reply")
                compopt -o nospace 2> /dev/null
                ;;
            files) compopt -o default 2> /dev/null ;;
        esac
    done < <(_MMSSL_COMPLETE=bash "${1/#\~\//$HOME/}" \
        "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2> /dev/null)
}

complete -F _mmssl mmssl

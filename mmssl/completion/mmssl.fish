# Completion of mmssl in fish: a file called mmssl.fish in ~/.config/fish/completions.

function __mmssl_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program $words[1]
    set -e words[1]
    env _MMSSL_COMPLETE=fish $program $words "$current" 2>/dev/null | while read -l -d \t kind value help
        switch $kind
            case done open
                printf '%s\t%s\n' $value $help
            case files
                set -l path (string sub -s (math (string length -- "$value") + 1) -- "$current")
                for found in (__fish_complete_path "$path")
                    echo $value$found
                end
        end
    end
end

complete -c mmssl -f -a '(__mmssl_complete)'

//! Lengths of files, functions and lines, read from formatted source.

use std::path::Path;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// rustfmt wraps code at 110; comments and strings have some room more.
const LINE_CHARS_MAX: usize = 120;

/// Complaints about one source file.
pub(crate) fn check(path: &Path, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > FILE_LINES_MAX {
        complaints.push(format!("{}: {} lines, at most {FILE_LINES_MAX}", path.display(), lines.len()));
    }
    for (i, line) in lines.iter().enumerate() {
        let chars = line.chars().count();
        if chars > LINE_CHARS_MAX {
            complaints.push(format!("{}:{}: {chars} characters", path.display(), i + 1));
        }
        if let Some(length) = function_length(&lines[i..])
            && length > FUNCTION_LINES_MAX
        {
            let at = format!("{}:{}", path.display(), i + 1);
            complaints.push(format!("{at}: function of {length} lines, at most {FUNCTION_LINES_MAX}"));
        }
    }
    complaints
}

/// Number of lines of the function that starts on the first line, if one does. rustfmt puts the closing brace
/// at the indentation of the `fn` line.
fn function_length(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?;
    let code = first.trim_start();
    let indent = first.len() - code.len();
    let words: Vec<&str> = code.split([' ', '(', '<']).take(8).collect();
    let at = words.iter().position(|&word| word == "fn")?;
    let prefix = words[..at].iter().all(|word| {
        word.starts_with("pub")
            || ["const", "async", "unsafe", "extern", "\"C\"", "crate)", "super)"].contains(word)
    });
    if !prefix {
        return None;
    }
    let opens = lines.iter().find(|line| line.ends_with(['{', ';', '}']))?;
    if opens.ends_with([';', '}']) {
        return None;
    }
    let closing = format!("{}}}", " ".repeat(indent));
    lines.iter().position(|line| *line == closing).map(|end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_function_is_named_by_its_line() {
        let body = "        step();\n".repeat(70);
        let text = format!("impl X {{\n    pub(crate) async fn long() {{\n{body}    }}\n}}\n");
        let complaints = check(Path::new("a.rs"), &text);
        assert_eq!(complaints, ["a.rs:2: function of 72 lines, at most 70"]);
        let fits = format!("fn fits() {{\n{}}}\n", "    step();\n".repeat(68));
        assert!(check(Path::new("a.rs"), &fits).is_empty());
    }

    #[test]
    fn a_long_file_and_a_long_line_are_named() {
        let long = format!("{}\n{}", "x".repeat(121), "\n".repeat(600));
        assert_eq!(check(Path::new("a.rs"), &long).len(), 2);
    }
}

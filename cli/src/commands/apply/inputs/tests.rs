use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

const SERVICE: &str = "services:\n  web:\n    image: nginx\n";

/// A directory named `demo` with files.
fn directory(files: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("demo");
    std::fs::create_dir(&dir).unwrap();
    for (name, content) in files {
        std::fs::write(dir.join(name), content).unwrap();
    }
    (outer, dir)
}

fn given(files: &[&Path]) -> InputFlags {
    let file = files.iter().map(|f| f.to_path_buf()).collect();
    InputFlags { file, stack: None, env_file: Vec::new(), profile: Vec::new() }
}

/// What reading one file says; in bounded time, whatever it is.
fn said(file: &Path) -> String {
    let start = Instant::now();
    let result = given(&[file]).read();
    // Far more than it takes, far less than what has no bounds.
    assert!(start.elapsed() < Duration::from_secs(60), "{} takes {:?}", file.display(), start.elapsed());
    result.map_or_else(|error| format!("{error:#}"), |stack| format!("{} services", stack.parts.services.len()))
}

fn of(content: &[u8]) -> String {
    let (_outer, dir) = directory(&[("a.yml", content)]);
    said(&dir.join("a.yml"))
}

#[test]
fn directories_and_patterns_are_expanded_in_an_order_that_lets_overrides_win() {
    let names = ["b.yml", "compose.override.yaml", "compose.yaml", "a.json", ".hidden.yml", "note.txt"];
    let (_outer, dir) = directory(&names.map(|name| (name, &b""[..])));
    let names = |given: &Path| -> Vec<String> {
        let found = expand(given).unwrap();
        found.iter().map(|p| p.file_name().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(&dir), ["compose.yaml", "compose.override.yaml", "a.json", "b.yml"]);
    assert_eq!(names(&dir.join("*.y?ml")), ["compose.yaml", "compose.override.yaml"]);
    assert!(expand(&dir.join("*.none")).is_err());
}

#[test]
fn patterns_match_whole_names() {
    for (pattern, name, expected) in [
        ("*", "", true),
        ("a*b*c", "aXbYbc", true),
        ("a?c", "abc", true),
        ("a*", "b", false),
        ("*.yml", "a.yml.x", false),
    ] {
        assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
    }
}

#[test]
fn line_ends_and_marks_of_other_systems_make_no_difference() {
    let dos = SERVICE.replace('\n', "\r\n");
    let marked = format!("\u{feff}{SERVICE}");
    for text in [SERVICE, &dos, &marked, &format!("\u{feff}{dos}"), SERVICE.trim_end()] {
        assert_eq!(of(text.as_bytes()), "1 services", "{text:?}");
    }
}

#[test]
fn what_is_no_text_says_what_it_is() {
    let wide: Vec<u8> = [0xfeff].into_iter().chain(SERVICE.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let swapped: Vec<u8> = wide.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect();
    for text in [wide, swapped] {
        assert!(of(&text).ends_with("a.yml: the file is UTF-16: save it as UTF-8"), "{}", of(&text));
    }
    assert!(of(b"services:\n  w\xf6b: {}\n").ends_with("line 2 is not text in UTF-8: save the file as UTF-8"));
    let tabs = of(b"services:\n\tweb:\n\t\timage: nginx\n");
    assert!(tabs.contains("a.yml:2:") && tabs.contains("spaces"), "{tabs}");
    let zeros = of(&[0; 100]);
    assert!(zeros.contains("problem"), "{zeros}");
    assert!(of(b"").contains("there is nothing in the file"));
}

#[test]
fn what_has_no_end_or_is_too_large_is_refused() {
    for endless in ["/dev/zero", "/dev/urandom"] {
        let error = said(Path::new(endless));
        assert!(error.contains("the file has more than 8388608 bytes: split it"), "{endless}: {error}");
    }
    assert!(said(Path::new("/dev/null")).contains("there is nothing in the file"));
    let (_outer, dir) = directory(&[]);
    let large = dir.join("large.yml");
    std::fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
    assert!(said(&large).contains("more than 8388608 bytes"), "{}", said(&large));
    // Large files of a letter that is cut in the middle are too large, not malformed.
    std::fs::write(&large, "ß".repeat(5 << 20)).unwrap();
    assert!(said(&large).contains("more than 8388608 bytes"), "{}", said(&large));
    // Many files that are each small enough.
    for number in 0..9 {
        std::fs::write(dir.join(format!("{number}.yml")), format!("# {}\n", "x".repeat(8 << 20)).split_off(100))
            .unwrap();
    }
    std::fs::remove_file(&large).unwrap();
    assert!(said(&dir).contains("bytes together: apply them in parts"), "{}", said(&dir));
}

#[test]
fn bombs_go_off_in_bounded_time() {
    let aliases: String = (1..30).map(|n| format!("x-{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)).collect();
    assert!(of(format!("x-0: &a0 [lol]\n{aliases}").as_bytes()).contains("values once its aliases are followed"));
    let deep = of(format!("x-deep: {}", "[".repeat(1 << 20)).as_bytes());
    assert!(deep.contains("levels deep"), "{}", &deep[..deep.len().min(500)]);
    assert!(of("? ".repeat(1 << 20).as_bytes()).contains("problem"));
    let wide = format!("x-wide: [{}]", "a,".repeat(1 << 20));
    assert!(of(wide.as_bytes()).contains("values once"), "{}", of(wide.as_bytes()));
    // Variables of variables, as `.env` has them; and one long one, very often.
    let doubling: String = (1..40).map(|n| format!("V{n}=${{V{}}}${{V{}}}\n", n - 1, n - 1)).collect();
    let env = format!("V0=lol\n{doubling}");
    let (_outer, dir) =
        directory(&[(".env", env.as_bytes()), ("a.yml", b"x-a: $V39\nservices: {web: {image: nginx}}\n")]);
    let error = said(&dir.join("a.yml"));
    assert!(error.contains("values have more than"), "{error}");
    let often = format!("x-a: [{}]\nservices: {{web: {{image: nginx}}}}\n", "\"$LONG\",".repeat(100_000));
    let long = format!("LONG={}\n", "x".repeat(900_000));
    let (_outer, dir) = directory(&[(".env", long.as_bytes()), ("a.yml", often.as_bytes())]);
    let error = said(&dir.join("a.yml"));
    assert!(error.contains("values have more than"), "{}", &error[..error.len().min(500)]);
}

#[test]
fn files_that_name_each_other_in_a_ring_are_refused() {
    let (_outer, dir) = directory(&[
        ("a.yml", b"include: [b.yml]\nservices: {web: {image: nginx}}\n"),
        ("b.yml", b"include: [a.yml]\n"),
        ("c.yml", b"services: {web: {extends: {file: d.yml, service: web}}}\n"),
        ("d.yml", b"services: {web: {extends: {file: c.yml, service: web}}}\n"),
    ]);
    for name in ["a.yml", "c.yml"] {
        let error = said(&dir.join(name));
        assert!(error.contains("problem") && error.contains(".yml:1:"), "{name}: {error}");
    }
}

#[test]
fn a_thousand_files_are_read_and_more_are_refused() {
    let (_outer, dir) = directory(&[]);
    for number in 0..1000 {
        std::fs::write(dir.join(format!("{number}.yml")), format!("services: {{s{number}: {{image: nginx}}}}\n"))
            .unwrap();
    }
    assert_eq!(said(&dir), "1000 services");
    std::fs::write(dir.join("more.yml"), SERVICE).unwrap();
    assert!(said(&dir).contains("more than 1000 manifests"), "{}", said(&dir));
    let twice = given(&[&dir.join("1*.yml"), &dir.join("*.yml")]).read().map(|_| ()).unwrap_err().to_string();
    assert!(twice.contains("more than 1000"), "{twice}");
}

#[test]
fn pipes_are_not_waited_for_but_those_of_a_shell_are_read() {
    let (_outer, dir) = directory(&[]);
    let pipe = dir.join("pipe.yml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(said(&pipe).contains("skep apply -f - <"), "{}", said(&pipe));
    // In a directory it is none of the manifests, as a socket or a device is not.
    assert!(said(&dir).contains("has no manifest"), "{}", said(&dir));
    for text in ["configs: {c: {file: ./pipe.yml}}\n", "include: [pipe.yml]\n"] {
        let uses = "services: {web: {image: nginx, configs: [{source: c}]}}\n";
        std::fs::write(dir.join("a.yml"), format!("{text}{}", if text.starts_with('c') { uses } else { "" })).unwrap();
        assert!(said(&dir.join("a.yml")).contains("it is a pipe"), "{}", said(&dir.join("a.yml")));
    }
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, SERVICE.as_bytes()).unwrap();
    drop(writer);
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&reader);
    assert_eq!(said(Path::new(&format!("/dev/fd/{descriptor}"))), "1 services");
}

#[test]
fn what_cannot_be_read_is_named() {
    let (_outer, dir) = directory(&[]);
    let missing = said(&dir.join("none.yml"));
    assert!(missing.contains("none.yml") && missing.contains("No such file"), "{missing}");
    std::os::unix::fs::symlink("loop.yml", dir.join("loop.yml")).unwrap();
    let ring = said(&dir.join("loop.yml"));
    assert!(ring.contains("loop.yml") && ring.contains("symbolic links"), "{ring}");
    let below = said(Path::new("/dev/null/x.yml"));
    assert!(below.contains("Not a directory"), "{below}");
    assert!(said(&dir).contains("has no manifest"), "{}", said(&dir));
}

//! Compose files as one tree: variables are put in, `include` and `extends` followed, paths made absolute, files merged, and
//! services of profiles that are not in force left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::interpolate::{Interpolation, Variables};
use super::merge::{merge, merge_services, without_resets};
use super::paths::{self, Base};
use super::{Project, dotenv};
use crate::manifest::decode::{entries, items, text, texts, unknown_key};
use crate::manifest::problem::{Place, Problems};
use crate::manifest::reader::{Disk, Document, MOST_FILES, Options};
use crate::manifest::yaml::{self, Entry, Node, Value};

/// Values of what is included and extended at most.
const MOST_WEIGHT: usize = 1_000_000;
/// Services that extend each other in a row at most.
const MOST_EXTENDS: usize = 50;

/// Makes one tree of the documents.
pub fn load(documents: Vec<Document>, options: &Options, disk: &dyn Disk, problems: &mut Problems) -> Project {
    if documents.is_empty() {
        return Project::default();
    }
    let mut loader =
        Loader { options, disk, problems, files: 0, weight: 0, cache: BTreeMap::new(), including: Vec::new() };
    let variables = loader.variables(&options.directory, options.env_files.as_deref(), &options.environment);
    let documents = documents.into_iter().map(|d| (d.node, d.directory)).collect();
    let tree = loader.merged(documents, &options.directory, &variables).map(|tree| without_resets(&tree));
    let tree = tree.map(|tree| in_profiles(&tree, &profiles(options, &variables), problems));
    let name = tree.as_ref().and_then(|tree| tree.get("name").cloned());
    Project {
        name: name.as_ref().and_then(|node| node.as_text()).map(str::to_owned),
        name_place: name.map(|node| node.place),
        tree,
        variables,
    }
}

fn profiles(options: &Options, variables: &Variables) -> Vec<String> {
    let listed = variables.get("COMPOSE_PROFILES").filter(|_| options.profiles.is_empty());
    let listed = listed.into_iter().flat_map(|v| v.split(',')).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty());
    options.profiles.iter().cloned().chain(listed).collect()
}

/// The tree without services of other profiles (Compose Specification, "Profiles").
fn in_profiles(tree: &Rc<Node>, profiles: &[String], problems: &mut Problems) -> Rc<Node> {
    let Value::Mapping(top) = &tree.value else { return tree.clone() };
    let is_in_force = |service: &Entry, problems: &mut Problems| {
        let Some(node) = service.value.get("profiles") else { return true };
        let wanted = texts(node, "profiles", problems);
        wanted.is_empty() || wanted.iter().any(|p| profiles.contains(p)) || profiles.iter().any(|p| p == "*")
    };
    let keep = |entry: &Entry, problems: &mut Problems| match &entry.value.value {
        Value::Mapping(services) if entry.key == "services" => {
            let kept = services.iter().filter(|s| is_in_force(s, problems)).cloned().collect();
            Entry { value: Rc::new(Node::new(entry.value.place, Value::Mapping(kept), None)), ..entry.clone() }
        }
        _ => entry.clone(),
    };
    let top = top.iter().map(|entry| keep(entry, problems)).collect();
    Rc::new(Node::new(tree.place, Value::Mapping(top), None))
}

struct Loader<'a> {
    options: &'a Options,
    disk: &'a dyn Disk,
    problems: &'a mut Problems,
    /// Uses of files beside those that the user named.
    files: usize,
    /// Values of what was included and extended.
    weight: usize,
    /// What files hold, variables not put in.
    cache: BTreeMap<PathBuf, Option<Rc<Node>>>,
    /// The files that are being included, outermost first.
    including: Vec<PathBuf>,
}

impl Loader<'_> {
    /// Variables of a project: the caller's, over those of its files of variables.
    fn variables(&mut self, directory: &Path, files: Option<&[PathBuf]>, outer: &Variables) -> Variables {
        let mut variables = Variables::new();
        let default = [directory.join(".env")];
        for path in files.unwrap_or(&default) {
            let content = match self.disk.read(path, dotenv::MOST_BYTES) {
                Ok(content) => content,
                Err(error) if files.is_none() && error.kind() == std::io::ErrorKind::NotFound => continue,
                // A directory of that name is no file of variables, and Compose passes it over likewise.
                Err(error) if files.is_none() && error.kind() == std::io::ErrorKind::IsADirectory => continue,
                Err(error) => {
                    let file = self.problems.file(&path.display().to_string(), "");
                    self.problems.add(Place { file, ..Place::default() }, format!("variables cannot be read: {error}"));
                    continue;
                }
            };
            let content = String::from_utf8_lossy(&content);
            let file = self.problems.file(&path.display().to_string(), &content);
            dotenv::read(file, &content, outer, &mut variables, self.problems);
        }
        variables.extend(outer.iter().map(|(k, v)| (k.clone(), v.clone())));
        variables
    }

    /// Documents, a later over the earlier.
    fn merged(
        &mut self,
        documents: Vec<(Rc<Node>, PathBuf)>,
        project: &Path,
        variables: &Variables,
    ) -> Option<Rc<Node>> {
        let mut interpolation = Interpolation::new(variables);
        let mut whole: Option<Rc<Node>> = None;
        for (node, directory) in documents {
            let tree = interpolation.tree(&node, self.problems);
            let tree = self.extended(&tree, &directory, variables);
            // Compose's way: paths of every file are relative to the project, which is where the first file is.
            let tree = paths::absolute(&tree, &self.base(project));
            let tree = self.with_includes(&tree, project, variables);
            whole = Some(match whole {
                Some(base) => merge(&base, &tree, self.problems),
                None => tree,
            });
        }
        whole
    }

    fn base<'b>(&'b self, directory: &'b Path) -> Base<'b> {
        Base { directory, home: self.options.environment.get("HOME").map(String::as_str) }
    }

    /// The tree with what it includes (Compose Specification, "Include").
    fn with_includes(&mut self, tree: &Rc<Node>, project: &Path, variables: &Variables) -> Rc<Node> {
        let Some(list) = tree.get("include").cloned() else { return tree.clone() };
        let mut whole = without(tree, "include");
        let items: Vec<Rc<Node>> = items(&list, "include", self.problems).to_vec();
        for item in items {
            if let Some(included) = self.included(&item, project, variables) {
                whole = self.join(&whole, &included);
            }
        }
        whole
    }

    fn included(&mut self, item: &Rc<Node>, project: &Path, outer: &Variables) -> Option<Rc<Node>> {
        let (mut files, mut directory, mut env_files) = (Vec::new(), None, None);
        if let Value::Mapping(_) = item.value {
            for field in entries(item, "an entry of include", self.problems) {
                match field.key.as_str() {
                    "path" => files = texts(&field.value, "path", self.problems),
                    "project_directory" => directory = Some(text(&field.value, "project_directory", self.problems)),
                    "env_file" => env_files = Some(texts(&field.value, "env_file", self.problems)),
                    _ => unknown_key(
                        field,
                        "an entry of include",
                        &["path", "project_directory", "env_file"],
                        self.problems,
                    ),
                }
            }
        } else {
            files.push(text(item, "an entry of include", self.problems));
        }
        let path = |file: &str, loader: &Self| PathBuf::from(paths::join(file, &loader.base(project)));
        let paths: Vec<PathBuf> = files.iter().filter(|f| !f.is_empty()).map(|f| path(f, self)).collect();
        let Some(first) = paths.first().cloned() else {
            self.problems.add(item.place, "an entry of include has the path of a Compose file");
            return None;
        };
        if self.including.contains(&first) {
            self.problems.add(item.place, format!("{} includes itself: remove one of the two", first.display()));
            return None;
        }
        let own = match directory {
            Some(directory) => path(&directory, self),
            None => first.parent().map(Path::to_owned).unwrap_or_default(),
        };
        let env_files: Option<Vec<PathBuf>> = env_files.map(|list| list.iter().map(|f| path(f, self)).collect());
        self.files += 1;
        if self.files > MOST_FILES {
            self.problems.add(item.place, format!("more than {MOST_FILES} files are included"));
            return None;
        }
        let variables = self.variables(&own, env_files.as_deref(), outer);
        let mut documents = Vec::new();
        for path in paths {
            let directory = path.parent().map(Path::to_owned).unwrap_or_default();
            let node = self.file(&path, item.place)?;
            if !self.afford(node.weight(), item.place) {
                return None;
            }
            documents.push((node, directory));
        }
        self.including.push(first);
        let tree = self.merged(documents, &own, &variables);
        self.including.pop();
        tree
    }

    /// Puts what is included beside what a file has. The same name twice is a problem unless it says the same.
    fn join(&mut self, tree: &Rc<Node>, included: &Rc<Node>) -> Rc<Node> {
        let (Value::Mapping(own), Value::Mapping(theirs)) = (&tree.value, &included.value) else { return tree.clone() };
        let mut joined = own.clone();
        for section in
            theirs.iter().filter(|s| !matches!(s.key.as_str(), "name" | "version") && !s.key.starts_with("x-"))
        {
            let Some(at) = joined.iter().position(|s| s.key == section.key) else {
                joined.push(section.clone());
                continue;
            };
            let (Value::Mapping(ours), Value::Mapping(new)) = (&joined[at].value.value, &section.value.value) else {
                continue;
            };
            let mut all = ours.clone();
            for entry in new {
                match ours.iter().find(|e| e.key == entry.key) {
                    None => all.push(entry.clone()),
                    Some(same) if says_the_same(&same.value, &entry.value) => {}
                    Some(other) => {
                        let file = self.problems.name(entry.place.file).to_owned();
                        let message = format!(
                            "{} of {} is in {file}:{} too, which is included: change it in a file given by another -f",
                            entry.key, section.key, entry.place.line
                        );
                        self.problems.add(other.place, message);
                    }
                }
            }
            joined[at].value = Rc::new(Node::new(joined[at].value.place, Value::Mapping(all), None));
        }
        Rc::new(Node::new(tree.place, Value::Mapping(joined), tree.tag))
    }

    /// Counts what is put together, so that files that name each other cannot cost without end.
    fn afford(&mut self, weight: usize, place: Place) -> bool {
        self.weight = self.weight.saturating_add(weight);
        if self.weight > MOST_WEIGHT {
            let message = format!("with what is included and extended, there are more than {MOST_WEIGHT} values");
            self.problems.add(place, message);
        }
        self.weight <= MOST_WEIGHT
    }

    /// The only document of a file; a problem at the place that names the file when there is none.
    fn file(&mut self, path: &Path, place: Place) -> Option<Rc<Node>> {
        if let Some(known) = self.cache.get(path).cloned() {
            return known;
        }
        let content = self
            .disk
            .read(path, yaml::MOST_BYTES)
            .and_then(|bytes| String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is not text in UTF-8")));
        let node = match content {
            Ok(content) => {
                let file = self.problems.file(&path.display().to_string(), &content);
                let documents = yaml::parse(file, &content, self.problems);
                documents.into_iter().next()
            }
            Err(error) => {
                self.problems.add(place, format!("{} cannot be read: {error}", path.display()));
                None
            }
        };
        self.cache.insert(path.to_owned(), node.clone());
        node
    }

    /// The tree with what its services extend (Compose Specification, "extends").
    fn extended(&mut self, tree: &Rc<Node>, directory: &Path, variables: &Variables) -> Rc<Node> {
        let services = tree.get("services").map(|s| s.value.clone());
        let (Value::Mapping(top), Some(Value::Mapping(services))) = (&tree.value, services) else {
            return tree.clone();
        };
        if !services.iter().any(|s| s.value.get("extends").is_some()) {
            return tree.clone();
        }
        let extend = |entry: &Entry, loader: &mut Self| {
            let mut seen = vec![(PathBuf::new(), entry.key.clone())];
            let value = loader.service(tree, &entry.value, directory, Path::new(""), variables, &mut seen);
            Entry { value, ..entry.clone() }
        };
        let services: Vec<Entry> = services.iter().map(|entry| extend(entry, self)).collect();
        let top = top.iter().map(|entry| {
            if entry.key != "services" {
                return entry.clone();
            }
            let value = Rc::new(Node::new(entry.value.place, Value::Mapping(services.clone()), entry.value.tag));
            Entry { value, ..entry.clone() }
        });
        Rc::new(Node::new(tree.place, Value::Mapping(top.collect()), tree.tag))
    }

    /// One service over what it extends. `seen` are those on the way here, by file and name.
    fn service(
        &mut self,
        tree: &Rc<Node>,
        service: &Rc<Node>,
        directory: &Path,
        file: &Path,
        variables: &Variables,
        seen: &mut Vec<(PathBuf, String)>,
    ) -> Rc<Node> {
        let Some(extends) = service.get("extends").cloned() else { return service.clone() };
        let own = without(service, "extends");
        let (mut name, mut other) = (String::new(), None);
        if let Value::Mapping(_) = extends.value {
            for field in entries(&extends, "extends", self.problems) {
                match field.key.as_str() {
                    "service" => name = text(&field.value, "service", self.problems),
                    "file" => other = Some(text(&field.value, "file", self.problems)),
                    _ => unknown_key(field, "extends", &["service", "file"], self.problems),
                }
            }
        } else {
            name = text(&extends, "extends", self.problems);
        }
        let other = other.map(|path| PathBuf::from(paths::join(&path, &self.base(directory))));
        let step = (other.clone().unwrap_or_else(|| file.to_owned()), name.clone());
        if seen.len() > MOST_EXTENDS {
            self.problems.add(extends.place, format!("more than {MOST_EXTENDS} services extend each other"));
            return own;
        }
        if seen.contains(&step) {
            self.problems.add(extends.place, format!("the service {name} extends itself: remove one of the extends"));
            return own;
        }
        seen.push(step);
        let (tree, directory, file) = match other {
            None => (tree.clone(), directory.to_owned(), file.to_owned()),
            Some(path) => {
                let Some(node) = self.file(&path, extends.place) else { return own };
                (node, path.parent().map(Path::to_owned).unwrap_or_default(), path)
            }
        };
        let Some(found) = tree.get("services").and_then(|s| s.get(&name)).cloned() else {
            self.problems.add(extends.place, format!("there is no service {name} to extend in that file"));
            return own;
        };
        if !self.afford(found.weight(), extends.place) {
            return own;
        }
        // The tree of the file itself has its variables; another file is as it was read.
        let is_read = file.as_os_str().is_empty();
        let found = if is_read { found } else { Interpolation::new(variables).tree(&found, self.problems) };
        let base = self.service(&tree, &found, &directory, &file, variables, seen);
        let base = paths::of_service(&base, &self.base(&directory));
        merge_services(&base, &own, self.problems)
    }
}

fn without(node: &Rc<Node>, key: &str) -> Rc<Node> {
    let Value::Mapping(entries) = &node.value else { return node.clone() };
    let kept = entries.iter().filter(|e| e.key != key).cloned().collect();
    Rc::new(Node::new(node.place, Value::Mapping(kept), node.tag))
}

/// Equal but for the places.
fn says_the_same(a: &Node, b: &Node) -> bool {
    match (&a.value, &b.value) {
        (Value::Sequence(a), Value::Sequence(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| says_the_same(a, b))
        }
        (Value::Mapping(a), Value::Mapping(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.key == b.key && says_the_same(&a.value, &b.value))
        }
        (a, b) => a == b,
    }
}
